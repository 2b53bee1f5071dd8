"""Folders that cannot be served: told to callers, remembered, tried again once they change."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.folder.store import ModelFolder
from serving.models.loads import LoadFailed, on_daemon_thread
from tests.serving.fake_loads import (
    BYTES,
    PATIENCE_S,
    Engine,
    Weights,
    names,
    on_loop,
    use,
    waiting,
)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def break_(engine: Engine, name: str) -> ModelFolder:
    folder = engine.folder(name)
    engine.faults[name] = lambda: ModelError(f"{folder.path}/config.json: not a JSON object")
    return folder


@on_loop
async def test_a_failure_is_told_again_without_another_try(engine: Engine) -> None:
    residents, folder = engine.residents(), break_(engine, "a")
    reason = "a/config.json: not a JSON object"
    for _ in range(3):
        with pytest.raises(LoadFailed) as raised:
            await use(residents, folder)
        assert str(raised.value) == f"model 'a' cannot be served: {reason}"
    assert engine.loads == ["a"]
    assert residents.failures == {"a": reason}
    assert await engine.next_release() == 0, "what was half loaded was given back"
    await use(residents, engine.folder("b"))
    assert names(residents) == "b"


def rewrite(path: Path) -> None:
    path.write_text("{}")


def add(path: Path) -> None:
    (path.parent / "1_Pooling").mkdir()
    (path.parent / "1_Pooling/config.json").touch()


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def permit(path: Path) -> None:
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # a clock of some milliseconds' steps
        path.chmod(0o600)


@pytest.mark.parametrize("change", [rewrite, add, touch, permit])
@on_loop
async def test_a_folder_that_changed_is_tried_again(engine: Engine, change: Any) -> None:
    residents, folder = engine.residents(), break_(engine, "a")
    with pytest.raises(LoadFailed):
        await use(residents, folder)
    del engine.faults["a"]
    change(folder.path / "config.json")
    await use(residents, folder)
    assert residents.failures == {}


@on_loop
async def test_fifty_requests_for_a_broken_folder_are_one_try(engine: Engine) -> None:
    residents, folder = engine.residents(), break_(engine, "a")
    users = (use(residents, folder) for _ in range(50))
    failures = await asyncio.gather(*users, return_exceptions=True)
    assert {type(failure) for failure in failures} == {LoadFailed}
    assert len(set(map(id, failures))) == 50, "none holds the frames of another's request"
    assert engine.loads == ["a"]


@on_loop
async def test_a_folder_that_cannot_be_measured_fails_at_once_while_another_loads(
    engine: Engine,
) -> None:
    def measure(folder: ModelFolder) -> int:
        if folder.name == "a":
            raise ModelError(f"{folder.path}: no weights")
        return BYTES

    residents = engine.residents(measure=measure)
    engine.gate.clear()
    async with waiting(use(residents, engine.folder("b"))) as [other]:
        assert await engine.next_load() == "b"
        for _ in range(2):
            with pytest.raises(LoadFailed, match=r"^model 'a' cannot be served: a: no weights$"):
                await use(residents, engine.folder("a"))
        engine.gate.set()
        await other
    assert engine.loads == ["b"]


class Panic(BaseException):
    """As the tokenizers' Rust raises."""


@pytest.mark.parametrize("fault", [RuntimeError("secret"), Panic("secret"), SystemExit(3)])
@on_loop
async def test_of_an_unforeseen_fault_callers_learn_the_kind_alone(
    engine: Engine, fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    engine.faults["a"] = lambda: fault
    residents, folder = engine.residents(), engine.folder("a")
    text = f"^model 'a' cannot be served: a: loading failed: {type(fault).__name__}$"
    for _ in range(2):
        with pytest.raises(LoadFailed, match=text):
            await use(residents, folder)
    assert engine.loads == ["a"]
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


@on_loop
async def test_too_little_memory_is_tried_again(engine: Engine) -> None:
    engine.faults["a"] = MemoryError
    residents, folder = engine.residents(), engine.folder("a")
    with pytest.raises(LoadFailed, match="MemoryError"):
        await use(residents, folder)
    del engine.faults["a"]
    await use(residents, folder)


@on_loop
async def test_pinning_a_broken_folder_says_where_it_is(engine: Engine) -> None:
    residents, folder = engine.residents(), break_(engine, "a")
    with pytest.raises(ModelError, match=f"^{folder.path}/config.json: not a JSON object$"):
        await residents.pin(folder)


@on_loop
async def test_a_deleted_folder_serves_on_until_its_model_is_unloaded(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    await use(residents, folder)
    shutil.rmtree(folder.path)
    await use(residents, folder)
    await residents.unload("a")
    with pytest.raises(LoadFailed, match=r"^model 'a' cannot be served: a: gone or empty$"):
        await use(residents, folder)
    assert residents.failures == {}
    await use(residents, engine.folder("a"))
    assert engine.loads == ["a", "a"]


@on_loop
async def test_a_changed_folder_serves_on_as_it_was_loaded(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    await use(residents, folder)
    rewrite(folder.path / "config.json")
    await use(residents, folder)
    assert engine.loads == ["a"]


@on_loop
async def test_neither_links_nor_relative_paths_show_where_the_folder_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.folder("blob").path
    (engine.root / "link").symlink_to(real)
    monkeypatch.chdir(engine.root)
    for path in (Path("link"), Path("./link"), engine.root / "link"):
        reason = f"{path} {path.resolve()} {path.absolute()}: torn"
        text = str(LoadFailed(ModelFolder("a", path), reason))
        assert text == "model 'a' cannot be served: a a a: torn"


def test_a_thread_whose_loop_is_gone_ends_quietly() -> None:
    may_end, threads = threading.Event(), []

    def work() -> None:
        threads.append(threading.current_thread())
        assert may_end.wait(PATIENCE_S)

    async def leave() -> None:
        task = asyncio.create_task(on_daemon_thread(work))
        while not threads:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    may_end.set()
    threads[0].join(PATIENCE_S)
    assert threads[0].daemon
    assert not threads[0].is_alive()


@on_loop
async def test_only_the_caller_refers_to_what_a_thread_gives() -> None:
    weights = await on_daemon_thread(Weights)
    watched = weakref.ref(weights)
    del weights
    assert watched() is None
