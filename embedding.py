"""The app, `uvicorn embedding:app`, and the command `embedding`.

Importing this module is cheap: torch is imported by the loader, in the background.
"""

from __future__ import annotations

import os
import sys

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import operations, page
from api.dialects import (
    ollama,
    ollama_models,
    ollama_running,
    openai,
    rerank,
    score,
    tei,
    tei_info,
    tokens,
)
from api.http import errors
from api.http.access import Cors, KeyGate
from api.http.direct import DirectRoutes
from api.http.entrance import Entrance
from api.http.frame import RequestFrame
from api.version import server_version
from cli import commands
from serving.lifecycle import lifespan
from serving.server import Service
from serving.setting_sources import BadSetting, read_flags

# Routes are tried in this order: those that people wait for come first.
_DIALECTS = (
    *(openai, ollama, rerank, score, tei, tokens),
    *(ollama_models, ollama_running, tei_info, operations, page),
)


def create_app() -> FastAPI:
    """Routes over a Service that its lifespan fills."""
    service = Service()
    app: FastAPI = FastAPIOffline(
        title="Embedding server",
        version=server_version(),
        description="Embeddings and reranking without a GPU and without a network.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(DirectRoutes, routers=[dialect.router for dialect in _DIALECTS])
    for layer in (Entrance, KeyGate, Cors, RequestFrame):  # the last one sees a request first
        app.add_middleware(layer, service=service)
    for dialect in _DIALECTS:
        app.include_router(dialect.router)
    errors.install(app)
    return app


app = create_app()


_USAGE = """usage: embedding COMMAND

  serve    serve models over HTTP; `embedding serve --help` lists the flags
  models   list the models in the folder: family, size, pooling, outputs, in memory or not
  verify   check a model's answers against published or recorded ones"""


def main() -> None:
    """The command `embedding`. Exit code 2 for a bad command or setting."""
    command, *rest = sys.argv[1:] or [""]
    if command in ("-h", "--help", "help"):
        print(_USAGE)
        return
    known = {"serve": _serve, "models": commands.show_models, "verify": commands.verify_model}
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


if __name__ == "__main__":
    main()
