"""Random models of real shapes, so that speed and memory can be measured with no weights at hand.

    python -m bench.random_models bge-m3 [--folder bench/models]

Writes config, seeded random weights, a small working tokenizer of the family's kind and the other
files of the published layout into an ignored folder. Vectors from them mean nothing; their cost is
the real model's. The tests build their tiny models here too, and compare them with stock
transformers: those have wide random weights, so that texts and scores differ clearly.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.random_parts import Shape, write_json, write_layout, write_m3_heads
from bench.random_tokenizers import END_OF_TEXT, NUM_WORDS, TOKENIZERS

__all__ = ["NUM_WORDS", "SHAPES", "Shape", "build"]


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


_TINY = {"initializer_range": 0.4}  # transformers' 0.02 makes all texts of a small model alike
_BERT = {"vocab_size": 30522, "max_position_embeddings": 512}
_XLM_R = {"vocab_size": 250002, "max_position_embeddings": 8194, "type_vocab_size": 1}
_XLM_R_LARGE = _encoder(24, 1024, 16, **_XLM_R)
_QWEN3_06B = _qwen3(28, 1024, 16, 8, vocab_size=151669, head_dim=128, intermediate_size=3072)
_TINY_BERT = _encoder(2, 32, 4, **{**_BERT, "vocab_size": 2500}, **_TINY)
_TINY_XLM_R = _encoder(2, 32, 4, **{**_XLM_R, "vocab_size": 2500}, **_TINY)
_TINY_XLM_R_512 = {**_TINY_XLM_R, "max_position_embeddings": 514}
_TINY_QWEN3 = _qwen3(2, 32, 4, 2, vocab_size=600, head_dim=16, intermediate_size=64, **_TINY)
_TINY_QWEN3_UNTIED = {**_TINY_QWEN3, "tie_word_embeddings": False}
_CAUSAL: dict[str, Any] = {"model": "ForCausalLM", "tokenizer": "qwen3-reranker"}
_CLASSIFIER: dict[str, Any] = {"model": "ForSequenceClassification", "layout": "none"}

SHAPES: dict[str, Shape] = {
    "minilm": Shape("bert", "mean", 256, _encoder(6, 384, 12, **_BERT)),
    "bge-small": Shape("bert", "cls", 512, _encoder(12, 384, 12, **_BERT)),
    "bge-base": Shape("bert", "cls", 512, _encoder(12, 768, 12, **_BERT)),
    "bge-m3": Shape("xlm-roberta", "cls", 8192, _XLM_R_LARGE, m3_heads=True),
    "bge-reranker-v2-m3": Shape("xlm-roberta", "cls", 8192, _XLM_R_LARGE, **_CLASSIFIER),
    "qwen3-0.6b": Shape("qwen3", "last", 32768, _QWEN3_06B),
    "qwen3-reranker-0.6b": Shape("qwen3", "last", 32768, _QWEN3_06B, layout="none", **_CAUSAL),
    "tiny-bert": Shape("bert", "cls", 64, _TINY_BERT),
    "tiny-dense": Shape("bert", "mean", 64, _TINY_BERT, layout="dense"),
    "tiny-prompts": Shape("bert", "mean", 64, _TINY_BERT, layout="prompts", tokenizer="bert-cased"),
    "tiny-bert-reranker": Shape("bert", "cls", 512, _TINY_BERT, **_CLASSIFIER),
    "tiny-xlm-roberta": Shape("xlm-roberta", "cls", 512, _TINY_XLM_R),
    "tiny-bge-m3": Shape("xlm-roberta", "cls", 8192, _TINY_XLM_R, storage="pickle", m3_heads=True),
    "tiny-bge-reranker": Shape("xlm-roberta", "cls", 512, _TINY_XLM_R_512, **_CLASSIFIER),
    "tiny-bge-reranker-v2-m3": Shape("xlm-roberta", "cls", 8192, _TINY_XLM_R, **_CLASSIFIER),
    "tiny-qwen3": Shape("qwen3", "last", 512, _TINY_QWEN3),
    "tiny-qwen3-embedding": Shape(
        "qwen3", "last", 32768, _TINY_QWEN3, layout="qwen3-embedding", storage="two shards"
    ),
    # The published rerankers got sentence-transformers' files later: one has them, one has not.
    "tiny-qwen3-reranker": Shape(
        "qwen3", "last", 32768, _TINY_QWEN3, layout="logit-score", **_CAUSAL
    ),
    "tiny-qwen3-reranker-untied": Shape(
        "qwen3", "last", 32768, _TINY_QWEN3_UNTIED, layout="none", **_CAUSAL
    ),
    "tiny-qwen3-reranker-seq-cls": Shape(
        "qwen3", "last", 32768, _TINY_QWEN3, tokenizer="qwen3-reranker", **_CLASSIFIER
    ),
}

_OUTPUTS = ("output.dense.weight", "o_proj.weight", "down_proj.weight")  # onto the residual
_CONFIG_NAMES = {"bert": "Bert", "xlm-roberta": "XLMRoberta", "qwen3": "Qwen3"}
_PUBLISHED_TOKENIZER_LENGTHS = {"qwen3-embedding": 131072}  # more than the model's 32,768


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the shape into `folder / name` unless it is there; returns that path."""
    path = folder / name
    if (path / "config.json").is_file():
        return path
    partial = folder / f".{name}.partial"  # renamed at the end: a torn build is never taken
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.manual_seed(seed)
    _write(partial, SHAPES[name])
    partial.rename(path)
    return path


def _write(path: Path, shape: Shape) -> None:
    default = "qwen3-embedding" if shape.family == "qwen3" else shape.family
    length = _PUBLISHED_TOKENIZER_LENGTHS.get(shape.layout, shape.max_length)
    tokenizer = TOKENIZERS[shape.tokenizer or default](length)
    tokenizer.save_pretrained(path)
    write_layout(path, shape, tokenizer.convert_tokens_to_ids)
    model = _model(shape, tokenizer.convert_tokens_to_ids(END_OF_TEXT))
    _save(model, path, shape)
    if shape.m3_heads:
        write_m3_heads(path, model)


def _model(shape: Shape, end_of_text: int | None) -> Any:
    name = _CONFIG_NAMES[shape.family]
    config = getattr(transformers, name + "Config")(**shape.sizes)
    if shape.family == "xlm-roberta":
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 1, 0, 2
    if shape.model == "ForSequenceClassification":
        config.num_labels = 1
        if shape.family == "qwen3":
            config.pad_token_id = end_of_text  # the head reads the last token that is not this
    model = getattr(transformers, name + shape.model)(config)
    for parameter_name, parameter in model.named_parameters():
        _spread(parameter_name, parameter, config)
    return model.eval()


def _spread(name: str, parameter: torch.nn.Parameter, config: Any) -> None:
    """transformers starts biases at zero and norms at one, which would hide mistakes, and heads so
    small that all scores would be the same."""
    if name.startswith(("classifier.", "score.", "bert.pooler.")) and parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=2 * config.hidden_size**-0.5)
    elif name.endswith("bias"):  # all tokens share it: a large one makes them alike
        torch.nn.init.normal_(parameter, std=config.initializer_range / 4)
    elif name.endswith(_OUTPUTS):  # narrower, or a token forgets what it was
        torch.nn.init.normal_(parameter, std=config.initializer_range / 2)
    elif name.lower().endswith("norm.weight"):
        torch.nn.init.normal_(parameter, mean=1.0, std=config.initializer_range)


def _save(model: Any, path: Path, shape: Shape) -> None:
    if shape.storage == "pickle":
        model.config.architectures = [type(model).__name__]
        model.config.dtype = torch.float32
        model.config.save_pretrained(path)
        torch.save(model.state_dict(), path / "pytorch_model.bin")
    elif shape.storage == "two shards":
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(path, max_shard_size=num_bytes * 2 // 3)
    else:
        model.save_pretrained(path)
    if shape.layout == "qwen3-embedding":  # published so, over weights named as the bare model's
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        write_json(path / "config.json", {**config, "architectures": ["Qwen3ForCausalLM"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="+", choices=sorted(SHAPES), metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("bench/models"))
    arguments = parser.parse_args()
    for name in arguments.names:
        print(build(name, arguments.folder))


if __name__ == "__main__":
    main()
