"""The command `embedding verify`: from arguments to table and exit code.

0 when all agree, 1 on a difference or when the model cannot be loaded, 2 for bad usage.
Torch is imported only to load a model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.models import align
from engine.devices import DeviceError
from engine.errors import ModelError
from engine.folder.recipe import read_recipe
from engine.folder.store import ModelFolder, find_models
from engine.verify import compare, records
from engine.verify.published import PUBLISHED, find_published
from serving.configuration import read_settings_quietly
from serving.models.engine import open_engine, overrides_of
from settings import Settings

log = logging.getLogger("embedding")

_VERIFY = """Check that a model answers what it should here, with the settings of EMBEDDING_*
variables and .env: device, dtype, layout, pooling and all others. Without a flag, against the
similarities or scores that its authors publish. Exit code 0: all agree; 1: something differs, or
the model cannot be loaded; 2: bad usage."""
_VERIFY_END = """A model with no published example, or a card against a machine that you trust:
  EMBEDDING_DEVICE=cpu EMBEDDING_DTYPE=float32 embedding verify MODEL --record answers.json
  EMBEDDING_DEVICE=vacc embedding verify MODEL --examples answers.json"""
_DIFFERS = """what may be wrong: the pooling or prompt above, files of another model or revision, \
a fine-tuned model under its parent's name, or the device: try EMBEDDING_DEVICE=cpu"""

_HEAD = ("what", "expected", "got", "difference", "allowed", "verdict")


class BadUsage(Exception):
    """The command cannot be done as asked; exit code 2."""


def verify_model(arguments: list[str]) -> int:
    """The command `embedding verify`. Raises BadSetting."""
    asked = _verify_parser().parse_args(arguments)
    settings = read_settings_quietly()
    try:
        return _verify(asked, settings)
    except (BadUsage, records.BadRecord, compare.WrongKind) as error:
        return _fail(str(error), 2)
    except (ModelError, DeviceError) as error:
        return _fail(str(error).removeprefix("EMBEDDING_MODEL="), 1)
    except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, an op that it lacks
        log.debug("verify failed", exc_info=True)
        first = next(iter(str(error).splitlines()), "no message")
        return _fail(f"{asked.model}: {type(error).__name__}: {first}", 1)


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="embedding verify",
        description=_VERIFY,
        epilog=_VERIFY_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="name of a folder below EMBEDDING_MODELS_DIR, a path, or all-MiniLM-L6-v2",
    )
    files = parser.add_mutually_exclusive_group()
    files.add_argument(
        "--examples", type=Path, metavar="FILE", help="compare with answers that --record wrote"
    )
    files.add_argument(
        "--record", type=Path, metavar="FILE", help="write this machine's answers; compare nothing"
    )
    return parser


def _verify(asked: argparse.Namespace, settings: Settings) -> int:
    """What can be refused without loading is refused first."""
    (folder,) = find_models([asked.model], settings.models_dir)
    read_recipe(folder.path, overrides_of(settings))
    if asked.record is not None:
        return _record(folder, settings, asked.record)
    if asked.examples is not None:
        record = records.read_record(asked.examples)
        model = open_engine(settings).load(folder)
        checks = compare.check_record(model, record)
        changes = _changes(record.decisions, compare.decisions(model))
        origin = f"{asked.examples}, recorded from {record.model}"
        return _print_report(model, origin, checks, changes)
    published = find_published(folder.name)
    if published is None:
        raise BadUsage(_nothing_published(folder.name))
    model = open_engine(settings).load(folder)
    origin = f"{published.source}\ntolerance  {published.why}"
    return _print_report(model, origin, compare.check_published(model, published), [])


def _record(folder: ModelFolder, settings: Settings, path: Path) -> int:
    if not path.absolute().parent.is_dir():
        raise BadUsage(f"--record {path}: there is no folder {path.parent}")
    model = open_engine(settings).load(folder)
    record = compare.record_answers(model)
    records.write_record(path, record)
    device, dtype = record.decisions["device"], record.decisions["dtype"]
    if (device, dtype) != ("cpu", "float32"):
        log.warning("recorded in %s on %s; float32 on cpu is the safer reference", dtype, device)
    print(f"recorded {len(record.texts) + len(record.pairs)} answers of {folder.name} in {path}")
    return 0


def _print_report(
    model: Any, origin: str, checks: Sequence[compare.Check], changes: Sequence[str]
) -> int:
    """How the model is served, a line a value, what may be wrong, the summary; the exit code."""
    now = compare.decisions(model)
    how = ", ".join(f"{key} {now[key]}" for key in ("device", "dtype", "layout", "linear"))
    print(f"model      {model.name}: {now['kind']}, {how}")
    if "pooling" in now:
        print(f"pooling    {now['pooling']} ({now['pooling_source']})")
        print(f"prompts    query {now['query_prompt']!r} ({now['prompts_source']})")
    print(f"examples   {origin}\n")
    print("\n".join(align([_HEAD, *map(_cells, checks)])), end="\n\n")
    differing = [check for check in checks if check.differs]
    missing = [check for check in checks if check.skipped]
    if not differing and not missing:
        print(f"all {len(checks)} values agree")
        return 0
    if differing:
        print("\n".join([*changes, _DIFFERS]))
    not_made = f", {len(missing)} could not be made" if missing else ""
    print(f"{len(differing)} of {len(checks)} values differ{not_made}")
    return 1


def _cells(check: compare.Check) -> tuple[str, ...]:
    if check.skipped:
        return check.what, "-", "-", "-", "-", f"MISSING: {check.skipped}"
    numbers = f"{check.difference:.1e}", f"{check.limit:.1e}"
    verdict = "ok" if check.agrees else "DIFFERS"
    return check.what, check.expected, check.got, *numbers, verdict


def _changes(recorded: dict[str, str], now: dict[str, str]) -> list[str]:
    """What was decided otherwise where the answers were recorded."""
    return [
        f"{key} was {recorded.get(key, 'absent')!r} when recorded, is {now.get(key, 'absent')!r}"
        for key in sorted({*recorded, *now})
        if recorded.get(key) != now.get(key)
    ]


def _nothing_published(name: str) -> str:
    known = ", ".join(published.model.rpartition("/")[2] for published in PUBLISHED)
    return (
        f"nothing is published for {name} (known by the folder's name: {known}). On a machine that "
        f"you trust: EMBEDDING_DEVICE=cpu EMBEDDING_DTYPE=float32 embedding verify {name} "
        f"--record FILE; then here: embedding verify {name} --examples FILE"
    )


def _fail(reason: str, code: int) -> int:
    print(reason, file=sys.stderr)
    return code
