"""Token ids in and out: a client's own are taken as they are, a text's are shown with places."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from bench.random_tokenizers import END_OF_TEXT
from engine.errors import BadTokenIds, NoTokens, TextTooLong
from engine.text.tokens import Side, TextLimits
from tests.engine.conftest import Embedders, Folders, Rerankers
from tests.engine.oracle import TOLERANCE

EMBEDDERS = ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3-embedding"]
RERANKERS = ["tiny-bert-reranker", "tiny-bge-reranker", "tiny-qwen3-reranker"]
TEXTS = [
    "w1",
    "w1 w2, w3!",
    "  Hello,  World! 你好 🎉 é ",
    "w1\n\nw2",
    "[CLS] w1 [SEP] <s> w2 </s>",
    f"w1 w2{END_OF_TEXT}",
    f"{END_OF_TEXT * 2}",
    "",
]
LIMITS = TextLimits(64)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_the_ids_of_a_text_give_the_vector_of_the_text(load_tiny: Embedders, name: str) -> None:
    model = load_tiny(name)
    from_texts = model.tokenize(TEXTS, LIMITS)
    from_ids = model.tokens_of([tokens.ids for tokens in from_texts], LIMITS)
    assert from_ids == from_texts
    for wanted, got in zip(model.run(from_texts), model.run(from_ids), strict=True):
        np.testing.assert_allclose(got.dense, wanted.dense, atol=TOLERANCE)


@pytest.mark.parametrize(("side", "wanted"), [("right", [9, 8, 7]), ("left", [7, 6, 5])])
def test_ids_are_cut_at_the_side_with_nothing_added(
    load_tiny: Embedders, side: Side, wanted: list[int]
) -> None:
    limits = TextLimits(3, side=side)
    long, short = load_tiny("tiny-bert").tokens_of([[9, 8, 7, 6, 5], [9]], limits, ("dense",))
    assert (long.ids, short.ids, long.outputs) == (wanted, [9], ("dense",))


def test_ids_over_the_limit_are_refused_with_index_length_and_limit(load_tiny: Embedders) -> None:
    limits = TextLimits(3, truncate=False)
    with pytest.raises(TextTooLong) as caught:
        load_tiny("tiny-bert").tokens_of([[9] * 3, [9] * 4], limits, first_index=30)
    assert (caught.value.index, caught.value.num_tokens, caught.value.max_tokens) == (31, 4, 3)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_ids_without_an_embedding_are_refused_and_the_last_one_is_not(
    load_tiny: Embedders, name: str
) -> None:
    model = load_tiny(name)
    assert model.vocab_size == len(model._backbone.words)
    (tokens,) = model.tokens_of([[0, model.vocab_size - 1]], LIMITS)
    assert np.isfinite(model.run([tokens])[0].dense).all()
    for bad in (-1, model.vocab_size, 2**70):
        with pytest.raises(BadTokenIds, match=f"input 31 has the token id {bad},") as caught:
            model.tokens_of([[5], [5, bad, 6]], LIMITS, first_index=30)
        assert (caught.value.token_id, caught.value.vocab_size) == (bad, model.vocab_size)


def test_an_empty_list_of_ids_is_refused(load_tiny: Embedders) -> None:
    with pytest.raises(NoTokens, match=r"input 31 has no tokens$"):
        load_tiny("tiny-bert").tokens_of([[5], []], LIMITS, first_index=30)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_spelled_text_has_the_ids_that_are_embedded(load_tiny: Embedders, name: str) -> None:
    model = load_tiny(name)
    for text in TEXTS:
        for prompt in ("", "w3: "):
            spelled = [token.id for token in model.spell(text, prompt=prompt)]
            assert spelled == model.tokenize([text], LIMITS, prompt)[0].ids
        bare = [token.id for token in model.spell(text, add_special_tokens=False)]
        if bare:
            limits = TextLimits(64, add_special_tokens=False)
            assert bare == model.tokenize([text], limits)[0].ids


@pytest.mark.parametrize("name", [*EMBEDDERS, *RERANKERS])
def test_places_and_special_tokens_are_those_of_stock_transformers(
    load_tiny: Embedders, load_tiny_reranker: Rerankers, tiny_folder: Folders, name: str
) -> None:
    model = (load_tiny_reranker if name in RERANKERS else load_tiny)(name)
    stock = AutoTokenizer.from_pretrained(tiny_folder(name))
    for text in TEXTS[:5]:
        wanted = stock(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        tokens = model.spell(text)
        assert [token.id for token in tokens] == wanted["input_ids"]
        assert [int(token.special) for token in tokens] == wanted["special_tokens_mask"]
        for token, (start, stop) in zip(tokens, wanted["offset_mapping"], strict=True):
            if token.special:
                assert (token.start, token.stop) == (None, None)
                assert token.text == stock.convert_ids_to_tokens(token.id)
            else:
                assert (token.start, token.stop, token.text) == (start, stop, text[start:stop])


def test_places_count_from_the_start_of_the_prompt(load_tiny: Embedders) -> None:
    (_, prompt, text, _) = load_tiny("tiny-bert").spell("w2", prompt="w1 ")
    assert (prompt.text, prompt.start, prompt.stop) == ("w1", 0, 2)
    assert (text.text, text.start, text.stop) == ("w2", 3, 5)


def test_the_end_that_a_qwen3_text_gets_is_spelled_once(load_tiny: Embedders) -> None:
    model = load_tiny("tiny-qwen3-embedding")
    for text in ("w1", f"w1{END_OF_TEXT}", f"w1{END_OF_TEXT * 3}"):
        ends = [token for token in model.spell(text) if token.text == END_OF_TEXT]
        assert [(end.special, end.start) for end in ends] == [(True, None)]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", [*EMBEDDERS, *RERANKERS])
def test_ids_decode_as_in_stock_transformers(
    load_tiny: Embedders,
    load_tiny_reranker: Rerankers,
    tiny_folder: Folders,
    name: str,
    skip: bool,
) -> None:
    model = (load_tiny_reranker if name in RERANKERS else load_tiny)(name)
    stock = AutoTokenizer.from_pretrained(tiny_folder(name))
    for text in TEXTS:
        ids = stock(text)["input_ids"]
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        assert model.decode(ids, skip) == stock.decode(ids, **options)


def test_ids_that_no_token_has_decode_to_nothing_and_others_are_refused(
    load_tiny: Embedders, load_tiny_reranker: Rerankers
) -> None:
    for model in (load_tiny("tiny-bert"), load_tiny_reranker("tiny-qwen3-reranker")):
        assert model.decode([model.vocab_size - 1]) == model.decode([]) == ""
        for bad in (-1, model.vocab_size):
            with pytest.raises(BadTokenIds, match=f"input 3 has the token id {bad},"):
                model.decode([5, bad], index=3)
