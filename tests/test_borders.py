"""The borders between folders, read from the imports; and how large files and folders may be.

Benchmarks and tests may import anything.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.servers import ROOT, clean_environment

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

HTTP = ("api/", "embedding.py")
SETTINGS = ("api/", "serving/", "limits.py", "settings.py")

# Who may import whom of ours: arrows go down only.
FLOORS = {
    "embedding": ("api", "cli", "serving"),
    "api": ("serving", "batcher", "engine", "settings", "limits"),
    "cli": ("serving", "engine", "settings"),
    "serving": ("batcher", "engine", "settings"),
    "batcher": (),
    "engine": (),
    "settings": ("limits",),
    "limits": (),
    "scripts": ("serving", "engine", "settings"),
}
MAX_FOLDER_FILES = 14

# Top-level package → the only places that may import it.
ALLOWED: dict[str, tuple[str, ...]] = {
    "torch": ("engine/",),
    "transformers": ("engine/",),
    "fastapi": HTTP,
    "fastapi_offline": HTTP,
    "starlette": HTTP,
    "uvicorn": ("api/", "cli/main.py"),
    "pydantic": SETTINGS,
    "pydantic_settings": SETTINGS,
    "asyncio": ("api/", "serving/"),
}

# Place → what it may not import although others may.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "batcher/scheduler.py": ("threading", "time", "logging", "queue", "concurrent"),
}

# Place → it imports the standard library and these alone.
ONLY_STANDARD_AND: dict[str, tuple[str, ...]] = {
    "batcher/scheduler.py": (),
    "batcher/": ("batcher",),
    "engine/cpus.py": (),
}

HEAVY = ("torch", "transformers", "tokenizers", "sentence_transformers", "scipy", "sklearn")


def sources(*folders: str) -> dict[str, str]:
    """Text by path, relative to the repository."""
    below = (path for folder in folders for path in ROOT.joinpath(folder).rglob("*.py"))
    paths = [*ROOT.glob("*.py"), *below]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


PRODUCT = sources("api", "batcher", "cli", "engine", "scripts", "serving")
NOT_TESTS = {**PRODUCT, **sources("bench")}


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all imports, those within functions and by `import_module` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0] if not node.level else "."
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield str(name.value).partition(".")[0]


def crossings(place: str, source: str) -> list[str]:
    """What the module at `place` imports although it must not."""
    found = []
    for name in sorted(set(imported(ast.parse(source)))):
        only = [also for where, also in ONLY_STANDARD_AND.items() if place.startswith(where)]
        if (
            name == "."
            or not place.startswith(ALLOWED.get(name, ("",)))
            or name in FORBIDDEN.get(place, ())
            or any(name not in (*sys.stdlib_module_names, *also) for also in only)
        ):
            found.append(f"{place} imports {name}")
    found += [f"{place} imports {name}" for name in upward(place, source)]
    return sorted(set(found))


def floor_of(place: str) -> str:
    return place.partition("/")[0].removesuffix(".py")


def upward(place: str, source: str) -> set[str]:
    """Folders of ours that a module imports and that are not below its own."""
    names = set(imported(ast.parse(source))) & FLOORS.keys()
    floor = floor_of(place)
    return {name for name in names if name != floor and name not in FLOORS.get(floor, FLOORS)}


def imports_of(place: str, source: str) -> set[str]:
    """Places of ours that a module imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found.update(f"{name.replace('.', '/')}.py" for name in names)
    return found & PRODUCT.keys()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The places of a circle of imports; empty where there is none."""
    done: set[str] = set()

    def visit(place: str, way: list[str]) -> list[str]:
        if place in way:
            return [*way[way.index(place) :], place]
        if place in done:
            return []
        for other in sorted(graph.get(place, ())):
            if found := visit(other, [*way, place]):
                return found
        done.add(place)
        return []

    return next((found for place in sorted(graph) if (found := visit(place, []))), [])


def long_functions(place: str, source: str) -> list[str]:
    """Decorators do not count; docstrings do."""
    return [
        f"{place}: {node.name} has {num_lines} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (num_lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


@pytest.mark.parametrize("place", PRODUCT)
def test_imports_stay_within_their_borders(place: str) -> None:
    assert crossings(place, PRODUCT[place]) == []


def test_no_import_goes_in_a_circle() -> None:
    assert circle({place: imports_of(place, source) for place, source in PRODUCT.items()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_dialects_do_not_import_one_another() -> None:
    dialects = {place for place in PRODUCT if place.startswith("api/dialects/")}
    of_one = {"api/dialects/ollama_running.py": {"api/dialects/ollama_models.py"}}
    for place in dialects:
        others = imports_of(place, PRODUCT[place]) & dialects - {"api/dialects/fields.py"}
        assert others <= of_one.get(place, set()), place


@pytest.mark.parametrize("folder", sorted({place.rpartition("/")[0] for place in PRODUCT}))
def test_a_folder_has_few_files(folder: str) -> None:
    files = [place for place in PRODUCT if place.rpartition("/")[0] == folder]
    assert len(files) <= MAX_FOLDER_FILES


@pytest.mark.parametrize("place", ["embedding.py", "limits.py", "settings.py", *ONLY_STANDARD_AND])
def test_every_place_with_a_rule_of_its_own_exists(place: str) -> None:
    assert any(name.startswith(place) for name in PRODUCT)


@pytest.mark.parametrize(
    ("place", "source", "name"),
    [
        ("api/dialects/ollama.py", "import torch", "torch"),
        ("api/dialects/ollama.py", "from torch.nn import functional", "torch"),
        ("api/dialects/ollama.py", "def f():\n    import torch.nn as nn", "torch"),
        (
            "api/dialects/ollama.py",
            "if TYPE_CHECKING:\n    from transformers import X",
            "transformers",
        ),
        ("embedding.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("embedding.py", "__import__('torch.nn')", "torch"),
        ("engine/model.py", "from pydantic import BaseModel", "pydantic"),
        ("engine/model.py", "import fastapi", "fastapi"),
        ("engine/model.py", "import asyncio", "asyncio"),
        ("settings.py", "import asyncio", "asyncio"),
        ("settings.py", "from engine.errors import ModelError", "engine"),
        ("serving/rows.py", "from fastapi import Request", "fastapi"),
        ("serving/rows.py", "from starlette.requests import Request", "starlette"),
        ("serving/rows.py", "from api.http.errors import HTTPError", "api"),
        ("engine/model.py", "from batcher.admission import Rate", "batcher"),
        ("cli/verify.py", "from api.app import create_app", "api"),
        ("batcher/worker.py", "import asyncio", "asyncio"),
        ("batcher/worker.py", "import numpy", "numpy"),
        ("batcher/worker.py", "from engine import model", "engine"),
        ("batcher/scheduler.py", "import threading", "threading"),
        ("batcher/scheduler.py", "from time import monotonic", "time"),
        ("batcher/scheduler.py", "import logging", "logging"),
        ("batcher/scheduler.py", "from batcher.jobs import Job", "batcher"),
        ("batcher/scheduler.py", "from .jobs import Job", "."),
        ("scripts/fetch_model.py", "import torch", "torch"),
    ],
)
def test_the_check_sees_a_crossed_border(place: str, source: str, name: str) -> None:
    assert crossings(place, source) == [f"{place} imports {name}"]


def test_the_check_lets_through_what_is_allowed() -> None:
    assert crossings("engine/model.py", "import torch\nimport numpy\nfrom engine import x") == []
    assert crossings("serving/rows.py", "import asyncio\nfrom batcher.admission import Rate") == []
    assert crossings("api/http/body.py", "import asyncio\nfrom fastapi import Request") == []


def test_importing_the_app_loads_nothing_heavy() -> None:
    code = f"import embedding, sys; print(*({set(HEAVY)!r} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


@pytest.mark.parametrize("place", NOT_TESTS)
def test_files_and_functions_are_short(place: str) -> None:
    source = NOT_TESTS[place]
    assert len(source.splitlines()) < MAX_FILE_LINES
    assert long_functions(place, source) == []


def test_the_check_sees_a_long_function() -> None:
    def of(num_lines: int) -> str:
        return "class A:\n    async def f():\n" + "        pass\n" * (num_lines - 1)

    assert long_functions("a.py", of(60)) == []
    assert long_functions("a.py", of(61)) == ["a.py: f has 61 lines"]
