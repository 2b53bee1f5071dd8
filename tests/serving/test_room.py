"""Models make room for each other within a budget: the least recently used goes first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.models.resident import LoadTimeout, NoRoom
from tests.serving.fake_loads import (
    BYTES,
    LOAD_TIMEOUT_S,
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


@pytest.mark.parametrize("max_bytes", [2 * BYTES, None], ids=["a setting", "what is available"])
@on_loop
async def test_the_least_recently_used_makes_room(engine: Engine, max_bytes: int | None) -> None:
    residents = engine.residents(max_bytes)
    for name in "abac":
        await use(residents, engine.folder(name), -1.0)
    assert names(residents) == "a c"
    assert engine.loads == ["a", "b", "c"]
    assert await engine.next_release() == 1, "memory was given back before the next load"


@on_loop
async def test_several_make_room_for_a_large_one(engine: Engine) -> None:
    residents = engine.residents(measure=lambda folder: 2 * BYTES if folder.name == "c" else BYTES)
    for name in "abc":
        await use(residents, engine.folder(name))
    assert names(residents) == "c"


@pytest.mark.parametrize(
    ("max_bytes", "limit"),
    [
        (2 * BYTES, "EMBEDDING_MAX_MODEL_BYTES=2000000000"),
        (None, r"1.0 GB is free \(EMBEDDING_MAX_MODEL_BYTES is not set\)"),
    ],
)
@on_loop
async def test_what_can_never_fit_is_refused_at_once_and_costs_no_other(
    engine: Engine, max_bytes: int | None, limit: str
) -> None:
    residents = engine.residents(
        max_bytes, measure=lambda folder: 3 * BYTES if folder.name == "big" else BYTES
    )
    await use(residents, engine.folder("a"))
    text = rf"^no room for model 'big': it needs 3000000000 bytes \(3.0 GB\), {limit}; "
    text += r"resident: a \(1.0 GB\)$"
    with pytest.raises(NoRoom, match=text):
        await use(residents, engine.folder("big"))
    if max_bytes is not None:
        with pytest.raises(NoRoom, match=text):
            await residents.pin(engine.folder("big"))
    assert names(residents) == "a"
    assert residents.failures == {}


@on_loop
async def test_a_model_named_at_start_is_tried_where_no_limit_is_set(engine: Engine) -> None:
    """What is free is a guess; whoever names a model wants it tried."""
    residents = engine.residents(None, measure=lambda folder: 3 * BYTES)
    await residents.pin(engine.folder("big"))
    assert names(residents) == "big"


@on_loop
async def test_beside_pinned_models_alone_there_is_no_room(engine: Engine) -> None:
    residents = engine.residents()
    for name in "ab":
        await residents.pin(engine.folder(name))
    with pytest.raises(NoRoom, match=r"resident: a \(1.0 GB, pinned\), b \(1.0 GB, pinned\)$"):
        await use(residents, engine.folder("c"))


@on_loop
async def test_a_model_waits_for_a_busy_one_and_takes_its_place(engine: Engine) -> None:
    residents = engine.residents(BYTES)
    async with residents.lease(engine.folder("a")):
        newcomer = asyncio.create_task(use(residents, engine.folder("b")))
        await until(lambda: any(r.held_up_by for r in residents.loading()))
        assert engine.loads == ["a"]
    await newcomer
    assert names(residents) == "b"


@on_loop
async def test_waiting_for_a_busy_model_has_a_limit_and_leaves_nothing_behind(
    engine: Engine,
) -> None:
    residents = engine.residents(BYTES)
    async with (
        residents.lease(engine.folder("a")),
        waiting(use(residents, engine.folder("b"))) as [newcomer],
    ):
        await until(lambda: any(r.held_up_by for r in residents.loading()))
        await advance(LOAD_TIMEOUT_S)
        with pytest.raises(LoadTimeout, match=r"'b' is still loading: .* in use by a$"):
            await newcomer
        await until(lambda: not residents.loading())
    assert engine.loads == ["a"]
    await use(residents, engine.folder("c"))
