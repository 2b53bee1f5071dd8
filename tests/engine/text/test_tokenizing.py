"""Texts as token ids: exact at every limit, special tokens kept, Qwen3's end once and only once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from bench.loaded import load_embedder
from bench.measure import words
from bench.random_tokenizers import END_OF_TEXT
from engine.errors import ModelError, TextTooLong
from engine.fitting import LoadOptions
from engine.folder.recipe import Overrides
from engine.model import EmbeddingModel
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import TextLimits
from tests.engine.conftest import CPU, Embedders, Folders, change_json, encode
from tests.engine.oracle import TOLERANCE

TEXTS = [
    "",
    "w1",
    "w1 w2 w3 w4 w5 w6 w7 w8",
    "Hello, World! 你好 🎉",
    words(random.Random(1), 90),
    f"w1 w2{END_OF_TEXT}",
    f"w1{END_OF_TEXT}{END_OF_TEXT}",
    f"{END_OF_TEXT}",
    f"w1{END_OF_TEXT}w2",
    "[CLS] w1 [SEP] <s> w2 </s> [PAD] <pad>",
]
ENCODERS = {"tiny-bert": (2, 3), "tiny-xlm-roberta": (0, 2)}  # ids of start and end


@pytest.fixture(scope="module", params=["appends", "does not append"])
def qwen3_folder(
    request: pytest.FixtureRequest, tiny_folder: Folders, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Only tokenizers; one has lost what appends <|endoftext|>."""
    source, folder = tiny_folder("tiny-qwen3-embedding"), tmp_path_factory.mktemp("qwen3")
    stored = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    if request.param == "does not append":
        stored["post_processor"] = stored["post_processor"]["processors"][0]  # ByteLevel alone
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    config = (source / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return folder


def content_of(folder: Path, text: str) -> list[int]:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def end_of(folder: Path) -> int:
    token_id = Backend.from_file(str(folder / "tokenizer.json")).token_to_id(END_OF_TEXT)
    assert token_id is not None
    return int(token_id)


def ended(content: list[int], end: int, limit: int) -> list[int]:
    """Cut to leave room for one end, none of its own before that."""
    kept = content[: limit - 1]
    while kept and kept[-1] == end:
        kept.pop()
    return [*kept, end]


@pytest.mark.parametrize("limit", [2, 3, 4, 5, 9, 64])
@pytest.mark.parametrize("name", ENCODERS)
def test_truncation_keeps_start_and_end_around_the_head(
    tiny_folder: Folders, name: str, limit: int
) -> None:
    folder, (start, end) = tiny_folder(name), ENCODERS[name]
    got = encode(Tokenizer(folder), TEXTS, limit)
    assert got == [[start, *content_of(folder, text)[: limit - 2], end] for text in TEXTS]
    stock = AutoTokenizer.from_pretrained(folder)
    assert got == [stock(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_limit_of_one_leaves_the_start(tiny_folder: Folders, name: str) -> None:
    got = encode(Tokenizer(tiny_folder(name)), TEXTS, 1)
    assert got == [[ENCODERS[name][0]]] * len(TEXTS)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 9, 64])
def test_a_qwen3_text_ends_once_and_only_once_after_truncation_too(
    qwen3_folder: Path, limit: int
) -> None:
    end = end_of(qwen3_folder)
    got = encode(Tokenizer(qwen3_folder, ends_with=END_OF_TEXT), TEXTS, limit)
    assert got == [ended(content_of(qwen3_folder, text), end, limit) for text in TEXTS]
    for text, ids in zip(TEXTS, got, strict=True):
        assert ids[-1] == end
        assert 1 <= len(ids) <= limit
        assert ids.count(end) == 1 or f"{END_OF_TEXT}w2" in text  # there it is a part of the text


def test_an_end_that_a_text_has_costs_no_token_more(qwen3_folder: Path) -> None:
    tokenizer = Tokenizer(qwen3_folder, ends_with=END_OF_TEXT)
    (wanted,) = encode(tokenizer, ["w1 w2"], 64)
    for text in (f"w1 w2{END_OF_TEXT}", f"w1 w2{END_OF_TEXT * 3}"):
        assert encode(tokenizer, [text], len(wanted), truncate=False) == [wanted]


def test_a_qwen3_text_over_the_limit_is_refused(qwen3_folder: Path) -> None:
    tokenizer = Tokenizer(qwen3_folder, ends_with=END_OF_TEXT)
    (wanted,) = encode(tokenizer, ["w1 w2"], 64)
    for text in ("w1 w2", f"w1 w2{END_OF_TEXT}"):
        with pytest.raises(TextTooLong) as caught:
            encode(tokenizer, [text], len(wanted) - 1, truncate=False)
        assert caught.value.num_tokens == len(wanted)


def pooled_last(model: EmbeddingModel, text: str, limit: int) -> np.ndarray:
    (outputs,) = model.run(model.tokenize([text], TextLimits(limit)))
    return outputs.dense / np.linalg.norm(outputs.dense)


def test_last_token_pooling_reads_the_end_whether_or_not_the_tokenizer_appends_it(
    load_tiny: Embedders, copy_tiny: Folders
) -> None:
    folder = copy_tiny("tiny-qwen3-embedding")
    processors = json.loads((folder / "tokenizer.json").read_text())["post_processor"]["processors"]
    change_json(folder / "tokenizer.json", post_processor=processors[0])
    without, appends = load_embedder("m", folder, CPU, LoadOptions()), load_tiny(folder.name)
    for limit in (4, 9, 32768):
        for text in ("w1 w2 w3", f"w1 w2 w3{END_OF_TEXT}"):
            wanted = pooled_last(appends, "w1 w2 w3", limit)
            np.testing.assert_allclose(pooled_last(without, text, limit), wanted, atol=TOLERANCE)


def test_with_another_pooling_qwen3_texts_are_as_the_tokenizer_makes_them(
    load_tiny: Embedders, tiny_folder: Folders
) -> None:
    model = load_tiny("tiny-qwen3-embedding", overrides=Overrides(pooling="mean"))
    stock = AutoTokenizer.from_pretrained(tiny_folder("tiny-qwen3-embedding"))
    got = [tokens.ids for tokens in model.tokenize(TEXTS, TextLimits(32768))]
    assert got == stock(TEXTS)["input_ids"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.text(max_size=8) | st.sampled_from(["w1 ", "</s>", "[SEP]", END_OF_TEXT, " " * 70])
    ),
    limit=st.integers(1, 40),
)
@pytest.mark.parametrize("name", [*ENCODERS, "tiny-qwen3-embedding"])
def test_any_text_is_its_stock_tokens_cut_to_the_limit(
    tiny_folder: Folders, name: str, parts: list[str], limit: int
) -> None:
    folder, text = tiny_folder(name), "".join(parts)
    ends_with = None if name in ENCODERS else END_OF_TEXT
    (got,) = encode(Tokenizer(folder, ends_with=ends_with), [text], limit)
    content = content_of(folder, text)
    if ends_with:
        assert got == ended(content, end_of(folder), limit)
    else:
        start, end = ENCODERS[name]
        assert got == [start, *content[: max(0, limit - 2)], end][:limit]


def test_refused_truncation_names_index_length_and_limit(load_tiny: Embedders) -> None:
    with pytest.raises(TextTooLong) as caught:
        load_tiny("tiny-bert").tokenize(
            ["w1", "w1 " * 100], TextLimits(64, truncate=False), first_index=30
        )
    assert (caught.value.index, caught.value.num_tokens, caught.value.max_tokens) == (31, 102, 64)


def test_refused_truncation_of_a_huge_text_counts_its_head_only(load_tiny: Embedders) -> None:
    with pytest.raises(TextTooLong, match="at least") as caught:
        load_tiny("tiny-bert").tokenize(["w1 " * 2_000_000], TextLimits(64, truncate=False))
    assert 64 < caught.value.num_tokens < 100_000


def test_a_huge_text_of_few_tokens_is_no_longer_than_its_tokens(load_tiny: Embedders) -> None:
    text = "w1" + " " * 500_000 + "w2"
    model = load_tiny("tiny-bert")
    wanted = model.tokenize(["w1 w2"], TextLimits(64))[0].ids
    for truncate in (True, False):
        assert model.tokenize([text], TextLimits(64, truncate))[0].ids == wanted


def test_the_prompt_is_part_of_the_limit_and_only_its_tokens_are_left_out(
    load_tiny: Embedders,
) -> None:
    model = load_tiny("tiny-prompts")
    prompt = model.prompt("query", None, None)
    (short,) = model.tokenize(["w1"], TextLimits(64), prompt=prompt)
    (cut,) = model.tokenize(["w1 " * 100], TextLimits(64), prompt=prompt)
    (bare,) = model.tokenize(["w1"], TextLimits(64))
    assert short.num_prompt == cut.num_prompt == len(short.ids) - 2  # w1 and the end
    assert (len(cut.ids), bare.num_prompt) == (64, 0)
    assert cut.ids[: cut.num_prompt] == short.ids[: short.num_prompt]


def test_stored_truncation_and_padding_are_switched_off(copy_tiny: Folders) -> None:
    folder = copy_tiny("tiny-bert")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(length=32)
    backend.enable_truncation(4)
    backend.save(str(folder / "tokenizer.json"))
    (got,) = encode(Tokenizer(folder), ["w1 w2 w3 w4 w5"], 64)
    assert len(got) == 7


def test_a_text_that_has_no_tokens_at_all_gets_one(copy_tiny: Folders) -> None:
    """A reranker's tokenizer adds none to an empty text; a sequence of none cannot run."""
    tokenizer = Tokenizer(copy_tiny("tiny-qwen3-reranker"))
    (got,) = encode(tokenizer, [""], 64)
    assert tokenizer.token_texts(got) == ["<|im_end|>"]


def test_a_folder_without_any_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json, and none can be made"):
        Tokenizer(tmp_path)


def test_a_tokenizer_without_its_fast_file_is_made_from_the_slow_one(
    copy_tiny: Folders, tmp_path: Path
) -> None:
    source = copy_tiny("tiny-bert")
    vocabulary = Backend.from_file(str(source / "tokenizer.json")).get_vocab()
    lines = "\n".join(sorted(vocabulary, key=lambda token: vocabulary[token]))
    (tmp_path / "vocab.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    texts = ["w1 w2", "Hello, World!"]
    got = encode(Tokenizer(tmp_path), texts, 64)
    assert got == encode(Tokenizer(source), texts, 64)
