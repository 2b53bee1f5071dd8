"""JSON bodies: what is refused before it is parsed, and where the slow parser is not asked."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http import parsing
from serving.errors import InvalidRequest

VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(st.sampled_from('ab[]{}"\\\u00e9')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('[{"\\')), inner),
)


def num_containers(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(num_containers, value.values()))
    return 1 + sum(map(num_containers, value)) if isinstance(value, list) else 0


@given(VALUES)
def test_lists_and_objects_are_counted_and_brackets_in_texts_are_not(value: Any) -> None:
    body, num = json.dumps(value, ensure_ascii=False).encode(), num_containers(value)
    parsing.check_containers(body, num)
    if num:
        with pytest.raises(InvalidRequest, match=f"has {num} lists and objects, the limit is"):
            parsing.check_containers(body, num - 1)


def test_a_body_of_small_lists_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parsing, "_MAX_CONTAINERS", 100)
    monkeypatch.setattr(parsing, "parse_json", lambda body: pytest.fail("it was parsed"))
    body = json.dumps({"input": [[]] * 101}).encode()
    with pytest.raises(InvalidRequest, match="has 103 lists and objects, the limit is 100"):
        asyncio.run(parsing.read_json(body, 1))


def test_as_many_objects_as_inputs_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "_MAX_CONTAINERS", 0)
    value = {"documents": [{"text": "a"}] * 98}
    assert asyncio.run(parsing.read_json(json.dumps(value).encode(), 10)) == value


def test_a_large_body_is_parsed_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    monkeypatch.setattr(
        parsing, "parse_json", lambda body: threads.append(threading.current_thread().name)
    )
    asyncio.run(parsing.read_json(b'"a"', 1))
    asyncio.run(parsing.read_json(b'"' + b"a" * parsing._LARGE + b'"', 1))
    assert (threads[0] == "MainThread", threads[1] == "MainThread") == (True, False)


def test_only_a_small_body_with_a_lone_surrogate_goes_to_the_slow_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = b'["\\ud800"]'
    assert parsing.parse_json(body) == ["\ud800"]
    monkeypatch.setattr(parsing, "_MAX_SLOW", len(body) - 1)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(InvalidRequest, match=r"invalid JSON: .*surrogate"):
        parsing.parse_json(body)
