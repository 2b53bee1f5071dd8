"""The command `embedding`: which command was meant, and `serve`."""

from __future__ import annotations

import os
import sys

import uvicorn

from cli.models import show_models
from cli.verify import verify_model
from serving.configuration import BadSetting, read_flags

_USAGE = """usage: embedding COMMAND

  serve    serve models over HTTP; `embedding serve --help` lists the flags
  models   list the models in the folder: family, size, pooling, outputs, in memory or not
  verify   check a model's answers against published or recorded ones"""


def main() -> None:
    """Exit code 2 for a bad command or setting."""
    command, *rest = sys.argv[1:] or [""]
    if command in ("-h", "--help", "help"):
        print(_USAGE)
        return
    known = {"serve": _serve, "models": show_models, "verify": verify_model}
    if command not in known:
        print(_USAGE, file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(known[command](rest))
    except BadSetting as error:
        print(f"cannot start: {error}", file=sys.stderr)
        sys.exit(2)


def _serve(arguments: list[str]) -> int:
    """Flags become environment variables, which reloaded and worker processes see too."""
    flags = read_flags(arguments)
    os.environ.update(flags.as_environment())
    uvicorn.run("embedding:app", host=flags.host, port=flags.port, reload=flags.reload)
    return 0
