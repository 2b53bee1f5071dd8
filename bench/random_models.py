"""Random models of real shapes, so that speed and memory can be measured with no weights at hand.

    python -m bench.random_models bge-m3 [--folder bench/models]

Writes config, seeded random weights (safetensors) and a small working tokenizer of the family's
kind into an ignored folder. Vectors from them mean nothing; their cost is the real model's. The
tests build their tiny models here too, and compare them with stock transformers.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engine.pooling import Pooling

Family = Literal["bert", "xlm-roberta", "qwen3"]
NUM_WORDS = 2000  # "w0" .. "w1999": one token each, so a text's length is chosen exactly


@dataclass(frozen=True, slots=True)
class Shape:
    """One model's architecture. `sizes` goes to the family's transformers config as it is."""

    family: Family
    pooling: Pooling
    max_length: int
    sizes: dict[str, Any] = field(default_factory=dict)


def _encoder(layers: int, hidden: int, heads: int, **sizes: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        **sizes,
    }


def _qwen3(layers: int, hidden: int, heads: int, kv_heads: int, **sizes: Any) -> dict[str, Any]:
    return {
        **_encoder(layers, hidden, heads, max_position_embeddings=32768),
        "num_key_value_heads": kv_heads,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        **sizes,
    }


_BERT = {"vocab_size": 30522, "max_position_embeddings": 512}
_XLM_R = {"vocab_size": 250002, "max_position_embeddings": 8194, "type_vocab_size": 1}
_TINY_QWEN3 = {"vocab_size": 600, "head_dim": 16, "intermediate_size": 64}

SHAPES: dict[str, Shape] = {
    "minilm": Shape("bert", "mean", 256, _encoder(6, 384, 12, **_BERT)),
    "bge-small": Shape("bert", "cls", 512, _encoder(12, 384, 12, **_BERT)),
    "bge-base": Shape("bert", "cls", 512, _encoder(12, 768, 12, **_BERT)),
    "bge-m3": Shape("xlm-roberta", "cls", 8192, _encoder(24, 1024, 16, **_XLM_R)),
    "qwen3-0.6b": Shape(
        "qwen3",
        "last",
        32768,
        _qwen3(28, 1024, 16, 8, vocab_size=151669, head_dim=128, intermediate_size=3072),
    ),
    "tiny-bert": Shape("bert", "cls", 64, _encoder(2, 32, 4, **{**_BERT, "vocab_size": 2500})),
    "tiny-xlm-roberta": Shape(
        "xlm-roberta", "cls", 512, _encoder(2, 32, 4, **{**_XLM_R, "vocab_size": 2500})
    ),
    "tiny-qwen3": Shape("qwen3", "last", 512, _qwen3(2, 32, 4, 2, **_TINY_QWEN3)),
}


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the shape into `folder / name` unless it is there; returns that path."""
    path = folder / name
    if (path / "config.json").is_file():
        return path
    shape = SHAPES[name]
    path.mkdir(parents=True, exist_ok=True)
    _TOKENIZERS[shape.family](shape.max_length).save_pretrained(path)
    _write_json(path / "modules.json", _modules())
    _write_json(path / "1_Pooling" / "config.json", _pooling_config(shape))
    _write_json(path / "sentence_bert_config.json", {"max_seq_length": shape.max_length})
    torch.manual_seed(seed)
    _model(shape).save_pretrained(path)  # writes config.json: last, so a torn build is rebuilt
    return path


def _model(shape: Shape) -> Any:
    names = {"bert": "Bert", "xlm-roberta": "XLMRoberta", "qwen3": "Qwen3"}
    config = getattr(transformers, names[shape.family] + "Config")(**shape.sizes)
    if shape.family == "xlm-roberta":
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 1, 0, 2
    model = getattr(transformers, names[shape.family] + "Model")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers starts biases at zero, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _pooling_config(shape: Shape) -> dict[str, Any]:
    return {
        "word_embedding_dimension": shape.sizes["hidden_size"],
        "pooling_mode_cls_token": shape.pooling == "cls",
        "pooling_mode_mean_tokens": shape.pooling == "mean",
        "pooling_mode_lasttoken": shape.pooling == "last",
    }


def _modules() -> list[dict[str, Any]]:
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]


def _words() -> list[str]:
    return [f"w{i}" for i in range(NUM_WORDS)]


def _bert_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*specials, *characters, *(f"##{c}" for c in characters), *_words()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _xlm_roberta_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
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


def _qwen3_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *specials])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>",
        pair="$A $B <|endoftext|>",
        special_tokens=[("<|endoftext|>", vocabulary["<|endoftext|>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )


_TOKENIZERS: dict[Family, Callable[[int], PreTrainedTokenizerFast]] = {
    "bert": _bert_tokenizer,
    "xlm-roberta": _xlm_roberta_tokenizer,
    "qwen3": _qwen3_tokenizer,
}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="+", choices=sorted(SHAPES), metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("bench/models"))
    arguments = parser.parse_args()
    for name in arguments.names:
        print(build(name, arguments.folder))


if __name__ == "__main__":
    main()
