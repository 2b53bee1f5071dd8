"""Small working tokenizers of every family: the published special tokens, post-processors and
pre-tokenizers over a tiny vocabulary.

Each text of `w0` to `w1999` costs one token a word (a few bytes a word for Qwen3). Must not know
models or weights; ids stay under 2,500 for words and under 600 for bytes.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

NUM_WORDS = 2000  # "w0" .. "w1999": one token each, so a text's length is chosen exactly

END_OF_TEXT = "<|endoftext|>"

# How Qwen cuts a text before merging bytes: a space joins the word behind it, digits stand alone,
# line breaks join the punctuation before them.
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# "yes" and "no" are one token each. The others merge over the seams of a rerank prompt, so that
# parts tokenized one by one give other ids than the whole, as with the real vocabulary.
_QWEN_MERGES = [
    *(("y", "e"), ("ye", "s"), ("n", "o")),
    *(("Ġ", "w"), (">", ":"), (".", "Ċ"), ("?", "Ċ"), ("Ċ", "Ċ")),
]


def bert_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    return _bert_tokenizer(max_length, normalizers.BertNormalizer())


def cased_bert_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """It has no upper-case letter in its vocabulary: whoever forgets to lower-case gets [UNK]."""
    return _bert_tokenizer(max_length, normalizers.BertNormalizer(lowercase=False))


def _bert_tokenizer(max_length: int, normalizer: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*specials, *characters, *(f"##{c}" for c in characters), *_words()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # as BertTokenizer
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def xlm_roberta_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    characters = string.ascii_letters + string.digits + string.punctuation
    scores = [(token, 0.0) for token in specials]
    scores += [("▁", -2.0), *((c, -8.0) for c in characters)]
    scores += [(f"▁{word}", -4.0) for word in _words()]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
    )


def qwen3_embedding_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Appends <|endoftext|> to every text, as Qwen3-Embedding's does."""
    tokenizer = _qwen3_backend()
    template = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}",
        pair=f"$A $B {END_OF_TEXT}",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    return _qwen3_tokenizer(tokenizer, max_length)


def qwen3_reranker_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Appends nothing and pads on the left, as Qwen3-Reranker's does."""
    tokenizer = _qwen3_backend()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _qwen3_tokenizer(tokenizer, max_length, padding_side="left")


def _qwen3_backend() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(left + right for left, right in _QWEN_MERGES)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=_QWEN_MERGES))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT, "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return tokenizer


def _qwen3_tokenizer(
    tokenizer: tokenizers.Tokenizer, max_length: int, padding_side: str = "right"
) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side=padding_side,
        pad_token=END_OF_TEXT,
        eos_token="<|im_end|>",
    )


def _words() -> list[str]:
    return [f"w{i}" for i in range(NUM_WORDS)]


TOKENIZERS: dict[str, Callable[[int], PreTrainedTokenizerFast]] = {
    "bert": bert_tokenizer,
    "bert-cased": cased_bert_tokenizer,
    "xlm-roberta": xlm_roberta_tokenizer,
    "qwen3-embedding": qwen3_embedding_tokenizer,
    "qwen3-reranker": qwen3_reranker_tokenizer,
}
