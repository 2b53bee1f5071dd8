"""POST /tokenize in both its forms, and /decode. The fake's tokens are characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.dialects import tokens
from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import END, START, write_model

NAME = "plain"
TOKENIZE = ["/tokenize", "/v1/tokenize"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, NAME, max_length=16, prompts={"shout": "HEY "})
    write_model(root, "ranker", "BertForSequenceClassification", max_length=32)
    with serve_fake(models_dir=root, pinned=[NAME], max_inputs=100) as running:
        yield running


def ask(server: FakeServer, path: str, **body: Any) -> Any:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def refused(server: FakeServer, path: str, body: Any, dialect: str) -> str:
    with server.client() as client:
        answer = client.post(path, content=json.dumps(body))
    return fault_of(answer, dialect, 400).text


def special(token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "text": f"<{token_id}>",
        "special": True,
        "start": None,
        "stop": None,
    }


def plain(text: str) -> list[dict[str, Any]]:
    return [
        {"id": ord(c), "text": c, "special": False, "start": i, "stop": i + 1}
        for i, c in enumerate(text)
    ]


@pytest.mark.parametrize("path", TOKENIZE)
def test_inputs_are_spelled_out_a_list_a_text(server: FakeServer, path: str) -> None:
    texts = ["hello", "", "天空🎉", "longer than what the model takes"]
    answer = ask(server, path, inputs=texts)
    assert answer == [[special(START), *plain(text), special(END)] for text in texts]
    assert ask(server, path, inputs="hello") == answer[:1]
    assert ask(server, path, inputs="") == answer[1:2]


@pytest.mark.parametrize("added", [False, "false"])
def test_special_tokens_can_be_left_out(server: FakeServer, added: Any) -> None:
    assert ask(server, "/tokenize", inputs="ab", add_special_tokens=added) == [plain("ab")]
    answer = ask(server, "/tokenize", prompt="ab", add_special_tokens=added)
    assert answer["tokens"] == [97, 98]


def test_a_prompt_by_name_goes_before_each_text(server: FakeServer) -> None:
    answer = ask(server, "/tokenize", inputs=["a", "b"], prompt_name="shout")
    assert ["".join(t["text"] for t in each[1:-1]) for each in answer] == ["HEY a", "HEY b"]
    nulls = dict.fromkeys(("model", "add_special_tokens", "prompt_name", "prompt"))
    assert ask(server, "/tokenize", inputs="a", **nulls) == ask(server, "/tokenize", inputs="a")


@pytest.mark.parametrize("path", TOKENIZE)
def test_a_prompt_is_counted_as_vllm_does(server: FakeServer, path: str) -> None:
    answer = ask(server, path, prompt="ab天")
    assert answer == {"count": 5, "max_model_len": 16, "tokens": [START, 97, 98, ord("天"), END]}
    of_ranker = ask(server, path, prompt="ab", model="ranker")
    assert of_ranker == {"count": 4, "max_model_len": 32, "tokens": [START, 97, 98, END]}
    assert ask(server, path, prompt="")["count"] == 2


def test_a_prompt_is_spelled_out_when_asked(server: FakeServer) -> None:
    answer = ask(server, "/tokenize", prompt="ab", return_token_strs=True)
    assert answer["token_strs"] == ["<1>", "a", "b", "<2>"]
    for wanted in (None, False, "false"):
        assert "token_strs" not in ask(server, "/tokenize", prompt="a", return_token_strs=wanted)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "give inputs, a text or a list of texts"),
        ({"inputs": None}, "give inputs, a text or a list of texts"),
        ({"inputs": []}, "give inputs, a text or a list of texts"),
        ({"inputs": 5}, "give inputs, a text or a list of texts"),
        ({"inputs": {"text": "a"}}, "give inputs, a text or a list of texts"),
        ({"inputs": ["a", 5]}, "inputs[1] is not a string"),
        ({"inputs": ["a", "\ud800"]}, "inputs[1] is not valid Unicode"),
        ({"inputs": ["a"] * 101}, "inputs has 101 texts, the limit is 100 (max_inputs)"),
        ({"inputs": "a", "add_special_tokens": "maybe"}, "add_special_tokens: "),
        ({"inputs": "a", "prompt_name": "nope"}, "'nope'"),
        ({"inputs": "a", "prompt_name": "shout", "model": "ranker"}, "is a reranker"),
    ],
    ids=ascii,
)
def test_bad_inputs_are_refused_as_tei_does(server: FakeServer, body: Any, words: str) -> None:
    assert words in refused(server, "/tokenize", body, "tei")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": 5}, "prompt: "),
        ({"prompt": ["a"]}, "prompt: "),
        ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
        ({"prompt": "a", "return_token_strs": "maybe"}, "return_token_strs: "),
    ],
    ids=ascii,
)
def test_a_bad_prompt_is_refused_as_vllm_does(server: FakeServer, body: Any, words: str) -> None:
    assert words in refused(server, "/tokenize", body, "openai")


def test_a_text_is_bounded(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_CHARS", 10)
    ask(server, "/tokenize", inputs=["a" * 10])
    message = refused(server, "/tokenize", {"inputs": ["a", "a" * 11]}, "tei")
    assert message == "inputs[1] has 11 characters, the limit is 10"
    message = refused(server, "/tokenize", {"prompt": "a" * 11}, "openai")
    assert message == "prompt[0] has 11 characters, the limit is 10"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"inputs": ["a" * 30] * 3}),
        ("/tokenize", {"inputs": "a" * 61, "add_special_tokens": False}),
        ("/tokenize", {"inputs": ["a"] * 10, "prompt_name": "shout"}),
        ("/tokenize", {"prompt": "a" * 59}),
        ("/decode", {"ids": [97] * 61}),
        ("/decode", {"ids": [[97] * 31] * 2}),
    ],
)
def test_the_tokens_of_a_request_are_limited_here_too(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    write_model(tmp_path, NAME, prompts={"shout": "HEY "})
    with serve_fake(models_dir=tmp_path, pinned=[NAME], max_request_tokens=60) as server:
        answer = server.post(path, body)
        assert answer.status_code in (400, 422)
        assert "tokens or more, the limit is 60 (max_request_tokens)" in answer.text
        assert server.serving.admission.num_tokens == 0
        assert len(ask(server, "/tokenize", inputs="a" * 58)[0]) == 60
        assert ask(server, "/decode", ids=[97] * 60) == ["a" * 60]


def test_a_list_of_ids_is_bounded(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_IDS", 10)
    assert ask(server, "/decode", ids=[[97] * 10] * 2) == ["a" * 10] * 2
    message = refused(server, "/decode", {"ids": [[97], [97] * 11]}, "tei")
    assert message == "ids[1] has 11 token ids, the limit is 10"


def test_ids_become_texts_again(server: FakeServer) -> None:
    ids = [START, *map(ord, "天 b"), END]
    assert ask(server, "/decode", ids=ids) == ["天 b"]
    assert ask(server, "/decode", ids=[ids, [97], []]) == ["天 b", "a", ""]
    for skip in (True, None, "true"):
        assert ask(server, "/decode", ids=ids, skip_special_tokens=skip) == ["天 b"]
    for skip in (False, "false"):
        assert ask(server, "/decode", ids=ids, skip_special_tokens=skip) == ["<1>天 b<2>"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "ids: "),
        ({"ids": None}, "ids"),
        ({"ids": "a"}, "ids"),
        ({"ids": 5}, "ids"),
        ({"ids": [97, "x"]}, "ids"),
        ({"ids": [97, [98]]}, "ids[0] is not a list of token ids"),
        ({"ids": [[97], 98]}, "ids[1] is not a list of token ids"),
        ({"ids": [True]}, "ids[0] is not a list of token ids"),
        ({"ids": [1.5]}, "ids[0] is not a list of token ids"),
        ({"ids": [None]}, "ids[0] is not a list of token ids"),
        ({"ids": [-1]}, "input 0 has the token id -1"),
        ({"ids": [[97], [0x110000]]}, "input 1 has the token id 1114112"),
        ({"ids": [10**18]}, "input 0 has the token id 1000000000000000000"),
        ({"ids": [[97]] * 101}, "ids has 101 lists of token ids, the limit is 100 (max_inputs)"),
        ({"ids": [97], "skip_special_tokens": "maybe"}, "skip_special_tokens: "),
    ],
    ids=ascii,
)
def test_bad_ids_are_refused_by_name(server: FakeServer, body: Any, words: str) -> None:
    assert words in refused(server, "/decode", body, "tei")


def test_a_model_out_of_memory_is_loaded_for_its_tokenizer(server: FakeServer) -> None:
    assert ask(server, "/decode", ids=[97], model="ranker") == ["a"]
    assert "ranker" in server.resident_names


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(st.characters(min_codepoint=4, codec="utf-8")), min_size=1))
def test_what_was_tokenized_is_decoded_to_itself(server: FakeServer, texts: list[str]) -> None:
    spelled = ask(server, "/tokenize", inputs=texts)
    ids = [[token["id"] for token in each] for each in spelled]
    assert ask(server, "/decode", ids=ids) == texts


def test_inputs_and_a_prompt_at_once_are_refused(server: FakeServer) -> None:
    answer = server.post("/tokenize", {"inputs": "a", "prompt": "b"})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "give inputs or prompt, not both"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"inputs": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/decode", {"ids": [97]}),
    ],
)
def test_the_time_is_told(server: FakeServer, path: str, body: dict[str, Any]) -> None:
    headers = server.post(path, body).headers
    assert float(headers["x-tokenization-time"]) >= 0
    assert headers["x-compute-tokens"] == "0"
