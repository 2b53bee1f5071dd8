"""Models come, stay and go: with loads that a test holds, and a clock that a test moves."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from pathlib import Path

import pytest

from serving.models.loads import LoadFailed
from serving.models.resident import LoadTimeout, Resident
from tests.serving.fake_loads import (
    BYTES,
    KEEP_S,
    LOAD_TIMEOUT_S,
    PATIENCE_S,
    Engine,
    advance,
    names,
    on_loop,
    until,
    use,
    waiting,
)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@on_loop
async def test_fifty_first_requests_are_one_load_and_the_loop_stays_free(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    engine.gate.clear()
    async with waiting(*(use(residents, folder) for _ in range(50))) as users:
        assert await engine.next_load() == "a"
        assert not any(user.done() for user in users)
        assert [r.num_users for r in residents.loading()] == [50]
        assert names(residents) == ""
        engine.gate.set()
        await asyncio.gather(*users)
    assert engine.loads == ["a"]
    [resident] = residents.resident()
    assert resident is residents.get("a")
    assert (resident.num_users, resident.num_bytes, resident.pinned) == (0, BYTES, False)
    assert resident.loaded_at == pytest.approx(time.time(), abs=PATIENCE_S)


@on_loop
async def test_models_are_loaded_one_after_the_other(engine: Engine) -> None:
    residents = engine.residents()
    engine.gate.clear()
    async with waiting(*(use(residents, engine.folder(name)) for name in "ab")) as users:
        await engine.next_load()
        await until(lambda: all(r.num_bytes for r in residents.loading()))
        assert len(engine.loads) == 1
        engine.gate.set()
        await asyncio.gather(*users)
    assert len(engine.loads) == 2


@on_loop
async def test_waiting_has_a_limit_and_the_load_goes_on(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    engine.gate.clear()
    async with waiting(use(residents, folder)) as [user]:
        await engine.next_load()
        await advance(LOAD_TIMEOUT_S)
        with pytest.raises(LoadTimeout, match=r"^model 'a' is still loading$"):
            await user
    engine.gate.set()
    await use(residents, folder)
    assert engine.loads == ["a"]


@on_loop
async def test_a_client_that_leaves_does_not_stop_the_load_for_others(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    engine.gate.clear()
    async with waiting(use(residents, folder), use(residents, folder)) as [leaver, stayer]:
        await engine.next_load()
        leaver.cancel()
        await asyncio.wait([leaver])
        engine.gate.set()
        await stayer
    assert leaver.cancelled()


@on_loop
async def test_a_load_that_nobody_waits_for_ends_and_counts_down(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    engine.gate.clear()
    async with waiting(use(residents, folder)):
        await engine.next_load()
    engine.gate.set()
    await until(residents.resident)
    assert residents.resident()[0].expires_at is not None
    await advance(KEEP_S)
    assert await engine.next_release() == 0


@pytest.mark.parametrize(
    ("setting", "asked", "kept_s"),
    [
        (300, None, 300),
        (300, 20, 20),
        (20, 300, 300),
        (0, 20, 20),
        (-1, 20, 20),
        (300, 0, 0),
        (0, None, 0),
        (300, -1, None),
        (-1, None, None),
        (300, 1e300, None),
        (300, float("inf"), None),
    ],
)
@on_loop
async def test_an_idle_model_stays_as_long_as_the_request_or_else_the_setting_says(
    engine: Engine, setting: float, asked: float | None, kept_s: float | None
) -> None:
    residents, folder = engine.residents(keep_alive_s=setting), engine.folder("a")
    if asked is not None:
        await use(residents, folder, 7.0)  # replaced by the next
    await use(residents, folder, asked)
    if kept_s != 0:
        [resident] = residents.resident()
        assert (resident.expires_at is None) == (kept_s is None)
        await advance(1e9 if kept_s is None else kept_s - 5)
        assert names(residents) == "a"
    if kept_s is not None:
        await advance(5)
        await until(lambda: names(residents) == "")
        assert await engine.next_release() == 0


@on_loop
async def test_a_request_that_says_nothing_leaves_what_an_earlier_one_asked_for(
    engine: Engine,
) -> None:
    """As Ollama does: a model that was loaded with keep_alive -1 stays."""
    residents, folder = engine.residents(), engine.folder("a")
    await use(residents, folder, -1.0)
    await use(residents, folder)
    await advance(10 * KEEP_S)
    assert names(residents) == "a"


@on_loop
async def test_a_model_in_use_is_not_unloaded_and_its_time_starts_anew(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    await use(residents, folder)
    async with residents.lease(folder) as resident:
        assert resident.expires_at is None
        await advance(10 * KEEP_S)
        assert resident.model is not None
    assert names(residents) == "a"
    loop = asyncio.get_running_loop()
    assert resident.expires_at == pytest.approx(loop.time() + KEEP_S, abs=PATIENCE_S)


@on_loop
async def test_after_unloading_nothing_refers_to_the_model(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    async with residents.lease(folder) as resident:
        [watched] = engine.weights
        model = weakref.ref(watched)
        del watched
        with pytest.raises(ZeroDivisionError):
            async with residents.lease(folder):
                raise ZeroDivisionError
    assert await residents.unload("a")
    assert resident.model is None
    assert model() is None


@on_loop
async def test_unloading_an_idle_model_returns_its_memory_at_once(engine: Engine) -> None:
    residents = engine.residents()
    await use(residents, engine.folder("a"))
    assert await residents.unload("a")
    assert names(residents) == ""
    assert await engine.next_release() == 0
    assert not await residents.unload("a")


@on_loop
async def test_unloading_a_busy_model_waits_for_its_last_user(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    async with residents.lease(folder):
        async with residents.lease(folder):
            assert await residents.unload("a")
        assert names(residents) == "a"
    assert names(residents) == ""


@on_loop
async def test_unloading_a_model_that_loads_lets_it_serve_who_waits(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    engine.gate.clear()
    async with waiting(use(residents, folder)) as [user]:
        await engine.next_load()
        assert await residents.unload("a")
        engine.gate.set()
        await user
    assert names(residents) == ""


@on_loop
async def test_a_pinned_model_is_never_unloaded(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    await use(residents, folder)
    resident = await residents.pin(folder)
    await use(residents, folder, 0.0)
    await advance(10 * KEEP_S)
    assert not await residents.unload("a")
    for name in "bc":
        await use(residents, engine.folder(name))
    assert names(residents) == "a c"
    assert (resident.pinned, resident.num_users, resident.expires_at) == (True, 0, None)


@on_loop
async def test_the_log_says_what_came_and_why_it_went(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedding.residents")
    residents = engine.residents(BYTES)
    for name in "ab":
        await use(residents, engine.folder(name))
    await advance(KEEP_S)
    await use(residents, engine.folder("a"), 0.0)
    assert [message.partition(" in 0.")[0] for message in caplog.messages] == [
        "model a loaded",
        "model a unloaded: to make room for b",
        "model b loaded",
        "model b unloaded: idle for 300 s",
        "model a loaded",
        "model a unloaded: asked to",
    ]
    assert caplog.messages[0] == "model a loaded in 0.0 s (1.0 GB)"


@on_loop
async def test_closing_stops_timers_and_tells_who_waits(engine: Engine) -> None:
    residents, folder = engine.residents(), engine.folder("a")
    await use(residents, folder)
    engine.gate.clear()
    async with waiting(use(residents, engine.folder("b"))) as [user]:
        assert await engine.next_load() == "a"
        assert await engine.next_load() == "b"
        await residents.close()
        with pytest.raises(LoadFailed, match="the server is shutting down"):
            await user
    await advance(KEEP_S)
    assert names(residents) == "a"
    engine.gate.set()


def test_residents_are_equal_to_themselves_alone(engine: Engine) -> None:
    one, other = (Resident("a", engine.folder("a")) for _ in range(2))
    assert len({one, other, one}) == 2
