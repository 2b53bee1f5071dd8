"""Which models there are, for people: what a table of them says, and which a server has in memory.

Reads folders and asks a running server once, by GET /api/ps; never loads a model, never imports
torch. A server that does not answer is no error: the column then says "?".
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from engine.errors import ModelError
from engine.folder.store import ModelFolder, default_models, find_models, list_models
from engine.folder.weight_files import num_values, weight_bytes
from engine.memory import format_bytes, format_count
from serving.configuration import read_settings_quietly
from serving.models.catalog import Entry, entry_of
from serving.models.engine import overrides_of
from settings import Settings

_ANSWER_TIMEOUT_S = 1.0
_MAX_ANSWER_BYTES = 10 << 20
_DESCRIPTION = """List the models that can be served: family, kind, size, pooling and where it was
read, outputs, and whether a server at EMBEDDING_HOST and EMBEDDING_PORT has them in memory. Folders
that cannot be served are listed with the reason."""
_ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Row:
    """One folder. `reason` is why it cannot be served; then only the name is known.

    `in_memory` is yes, pinned, no, or ? when no server answers; `num_bytes` are the files'.
    """

    name: str
    path: str
    in_memory: str
    reason: str = ""
    family: str = ""
    kind: str = ""
    num_parameters: int = 0
    num_bytes: int = 0
    dim: int = 0
    max_length: int = 0
    max_length_source: str = ""
    pooling: str = ""
    pooling_source: str = ""
    outputs: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """`notes` are what the table alone would not say."""

    models_dir: str
    server: str
    server_answers: bool
    models: list[Row]
    notes: list[str]


def show_models(arguments: list[str]) -> int:
    """The command `embedding models`. Raises BadSetting."""
    parser = argparse.ArgumentParser(prog="embedding models", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON")
    wants_json = parser.parse_args(arguments).json
    settings = read_settings_quietly()
    try:
        listing = list_folder(settings)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    print(as_json(listing) if wants_json else as_table(listing))
    return 0


def list_folder(settings: Settings) -> Listing:
    """Pinned models first, as the server would serve them. Raises ModelError when the folder
    cannot be read."""
    notes: list[str] = []
    folders = _folders(settings, notes)
    url = server_url(settings.host, settings.port)
    in_memory, why_unknown = ask_server(url)
    if why_unknown:
        notes.append(f"in memory is not known: {why_unknown}")
    entries = [entry_of(folder, overrides_of(settings)) for folder in folders]
    rows = [_row(entry, in_memory) for entry in entries]
    return Listing(str(settings.models_dir), url, not why_unknown, rows, notes)


def server_url(host: str, port: int) -> str:
    """Where a server that listens on `host` can be asked from this machine."""
    host = _ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ask_server(url: str) -> tuple[dict[str, str] | None, str]:
    """ "yes" or "pinned" by model name; or None, and why nobody knows."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/api/ps", timeout=_ANSWER_TIMEOUT_S) as answer:
            running = json.loads(answer.read(_MAX_ANSWER_BYTES))["models"]
        return {str(model["name"]).removesuffix(":latest"): _held(model) for model in running}, ""
    except HTTPError as error:
        error.close()
        return None, f"the server at {url} answers {error.code} (starting, or another server)"
    except (OSError, HTTPException):
        return None, f"no server answers at {url} (EMBEDDING_HOST, EMBEDDING_PORT)"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"another server answers at {url}"


def as_json(listing: Listing) -> str:
    return json.dumps(asdict(listing), ensure_ascii=False, indent=2)


def as_table(listing: Listing) -> str:
    """A line a model that can be served, then a line a folder that cannot, then the notes."""
    head = ("name", "family", "kind", "parameters", "files", "dims", "longest", "pooling",
            "outputs", "in memory")  # fmt: skip
    table = [head, *(_cells(row) for row in listing.models if not row.reason)]
    refused = [f"{row.name}: {row.reason}" for row in listing.models if row.reason]
    if refused:
        refused = ["", "cannot be served:", *(f"  {line}" for line in refused)]
    notes = ["", *listing.notes] if listing.notes else []
    return "\n".join([*(align(table) if len(table) > 1 else []), *refused, *notes]).strip("\n")


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """A line a row, the cells of a column below one another."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]


def _folders(settings: Settings, notes: list[str]) -> list[ModelFolder]:
    """Those that EMBEDDING_MODEL names, then the rest; the stand-in where there is none."""
    below = list_models(settings.models_dir)
    named: list[ModelFolder] = []
    try:
        named = find_models(settings.models, settings.models_dir)
    except ModelError as error:
        notes.append(str(error))
    names = {folder.name for folder in named}  # which hide others of the name, as when serving
    folders = [*named, *(folder for folder in below if folder.name not in names)]
    if folders:
        return folders
    try:
        (stand_in,) = default_models(settings.models_dir)
    except ModelError as error:
        notes.append(str(error))
        return []
    notes.append(
        f"no model in {settings.models_dir}: ./download-model.sh fetches bge-m3; "
        f"{stand_in.name} stands in"
    )
    return [stand_in]


def _row(entry: Entry, in_memory: dict[str, str] | None) -> Row:
    name, path, recipe = entry.folder.name, entry.folder.path, entry.recipe
    held = "?" if in_memory is None else in_memory.get(name, "no")
    if recipe is None:
        return Row(name, str(path), held, entry.reason)
    try:
        num_parameters = num_values(path)
    except ModelError as error:
        return Row(name, str(path), held, str(error).replace(str(path), name))
    return Row(
        name=name,
        path=str(path),
        in_memory=held,
        family=recipe.family,
        kind=recipe.kind,
        num_parameters=num_parameters,
        num_bytes=weight_bytes(path),
        dim=recipe.dim,
        max_length=recipe.max_length,
        max_length_source=recipe.sources["max_length"],
        pooling="+".join(recipe.pooling),
        pooling_source=recipe.sources.get("pooling", ""),
        outputs="score" if recipe.is_reranker else ",".join(recipe.outputs),
    )


def _cells(row: Row) -> tuple[str, ...]:
    pooling = f"{row.pooling} ({row.pooling_source})" if row.pooling else "-"
    return (
        row.name,
        row.family,
        row.kind,
        format_count(row.num_parameters),
        format_bytes(row.num_bytes),
        str(row.dim) if row.dim else "-",
        str(row.max_length),
        pooling,
        row.outputs,
        row.in_memory,
    )


def _held(running: dict[str, Any]) -> str:
    return "pinned" if running["pinned"] else "yes"
