"""What every dialect's texts and token ids become on the way: limits, parts, refusals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BadTokenIds, NoTokens, TextTooLong
from engine.folder.recipe import read_recipe
from serving.embedding import EmbedRequest, PromptChoice, check_embeds, tokenizing
from serving.errors import InvalidRequest
from serving.rows import MAX_PROMPT_CHARS, TokenizerThread
from serving.scoring import ScoreRequest
from tests.serving.fake_models import END, START, FakeEngine, FakeModel, write_model


@pytest.fixture
def model(tmp_path: Path) -> FakeModel:
    made = FakeEngine().load(write_model(tmp_path, "m", prompts={"query": "q:"}))
    assert isinstance(made, FakeModel)
    return made


def ids_of(model: FakeModel, wanted: EmbedRequest, prompt: str = "", first: int = 0) -> Any:
    work = tokenizing(model, wanted, ("query" if prompt else None, None, None))
    return [list(tokens.ids) for tokens in work.tokenize(list(work.items), first)]


def test_a_text_is_cut_at_the_side_that_the_request_names(model: FakeModel) -> None:
    for side, kept in (("right", "abc"), ("left", "yza")):
        wanted = EmbedRequest(["abcxyza"], max_length=5, truncation_side=side)  # type: ignore[arg-type]
        assert ids_of(model, wanted) == [[START, *map(ord, kept), END]]


def test_special_tokens_are_left_out_where_the_request_says_so(model: FakeModel) -> None:
    wanted = EmbedRequest(["ab"], add_special_tokens=False)
    assert ids_of(model, wanted, "q:") == [list(map(ord, "q:ab"))]
    with pytest.raises(NoTokens, match="input 30"):
        ids_of(model, EmbedRequest([""], add_special_tokens=False), first=30)


def test_token_ids_are_taken_as_they_are_up_to_the_limit(model: FakeModel) -> None:
    ids = [[7, 8, 9], list(range(100))]
    got = ids_of(model, EmbedRequest(token_ids=ids, truncation_side="left"), "q:")
    assert got == [ids[0], ids[1][-model.max_length :]]
    with pytest.raises(TextTooLong, match="input 31 has 100 tokens"):
        ids_of(model, EmbedRequest(token_ids=ids, truncate=False), first=30)
    with pytest.raises(BadTokenIds, match="input 31"):
        ids_of(model, EmbedRequest(token_ids=[[7], [-1]]), first=30)


@pytest.mark.parametrize("field", ["prompt_name", "input_type", "instruction"])
def test_token_ids_with_a_prompt_are_refused(tmp_path: Path, field: str) -> None:
    recipe = read_recipe(write_model(tmp_path, "m").path, FakeEngine().overrides)
    wanted = EmbedRequest(token_ids=[[7]], prompt=PromptChoice(**{field: "query"}))
    with pytest.raises(InvalidRequest, match=f"{field}: token ids take no prompt"):
        check_embeds("m", recipe, wanted)


def test_long_lists_of_ids_come_in_parts_as_long_texts_do() -> None:
    thread = TokenizerThread()

    async def firsts(items: Sequence[Any]) -> list[int]:
        parts = thread.in_parts(items, lambda part, first: [first])
        return [first async for (first,) in parts]

    pairs = [("a" * 10_000, "b" * 30_000)] * 3
    try:
        assert asyncio.run(firsts([[7] * 40_000] * 3)) == [0, 1, 2]
        assert asyncio.run(firsts(["a" * 40_000] * 3)) == [0, 1, 2]
        assert asyncio.run(firsts(pairs)) == [0, 1, 2]
        assert asyncio.run(firsts([[7], []] * 50)) == [0, 64]
    finally:
        thread.stop()


def test_what_goes_before_each_text_counts_as_its_own_characters() -> None:
    thread = TokenizerThread()
    names: list[str] = []

    def work(part: list[str], first: int) -> list[int]:
        names.append(threading.current_thread().name.partition("_")[0])
        return [first]

    async def firsts(num_before: int) -> list[int]:
        parts = thread.in_parts(["a"] * 10, work, num_before)
        return [first async for (first,) in parts]

    try:
        assert asyncio.run(firsts(0)) == asyncio.run(firsts(90)) == [0]
        assert names == ["MainThread"] * 2
        assert asyncio.run(firsts(100)) == [0]
        assert asyncio.run(firsts(30_000)) == [0, 2, 4, 6, 8]
        assert names[2:] == ["tokenizer"] * 6
    finally:
        thread.stop()


def test_a_request_says_how_long_its_prompt_is(model: FakeModel) -> None:
    assert tokenizing(model, EmbedRequest(["a"]), (None, None, "find")).num_before == 4
    assert tokenizing(model, EmbedRequest(token_ids=[[7]]), (None, None, None)).num_before == 0


@pytest.mark.parametrize("field", ["prompt_name", "input_type", "instruction"])
def test_a_prompt_longer_than_any_model_reads_is_refused(field: str) -> None:
    PromptChoice(**{field: "x" * MAX_PROMPT_CHARS})
    words = rf"{field} has {MAX_PROMPT_CHARS + 1} characters, the limit is {MAX_PROMPT_CHARS}"
    with pytest.raises(InvalidRequest, match=words):
        PromptChoice(**{field: "x" * (MAX_PROMPT_CHARS + 1)})
    with pytest.raises(InvalidRequest, match="instruction has"):
        ScoreRequest(["a"], ["b"], instruction="x" * (MAX_PROMPT_CHARS + 1))
