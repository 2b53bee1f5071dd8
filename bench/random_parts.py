"""What a shape is, and the files that are published around its weights.

A layout is a set of JSON files (and small modules' weights) as one publisher writes them. Weights
of small modules come from torch's global generator: who builds seeds it. Must not know the table of
shapes or tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

Family = Literal["bert", "xlm-roberta", "qwen3"]
PoolingMode = Literal["cls", "mean", "last"]
Layout = Literal["older", "dense", "prompts", "qwen3-embedding", "logit-score", "none"]
Storage = Literal["safetensors", "two shards", "pickle"]

_PROMPTS_FILE = "config_sentence_transformers.json"
_TRANSFORMER_FILE = "sentence_bert_config.json"
_POOLING_FILE = "1_Pooling/config.json"
DENSE_SIZE = 24  # what `dense` projects to
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
QWEN3_PROMPTS = {
    "query": (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        "Query:"
    ),
    "document": "",
}
_SWITCHES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
_RERANK_TEMPLATE = """\
{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") \
| first | default("Given a web search query, retrieve relevant passages that answer the query") -%}
{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set document = messages | selectattr("role", "eq", "document") | map(attribute="content") \
| first -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction }}
<Query>: {{ query }}
<Document>: {{ document }}<|im_end|>
<|im_start|>assistant
<think>

</think>

{{ "" }}"""  # the empty expression keeps the last line break, which templates drop


@dataclass(frozen=True, slots=True)
class Shape:
    """One model: architecture, files, storage. `sizes` goes to transformers' config as it is."""

    family: Family
    pooling: PoolingMode  # of a reranker: the token that its head reads
    max_length: int
    sizes: dict[str, Any] = field(default_factory=dict)
    model: Literal["Model", "ForSequenceClassification", "ForCausalLM"] = "Model"
    layout: Layout = "older"
    tokenizer: str = ""  # "": the family's
    storage: Storage = "safetensors"
    m3_heads: bool = False


def write_layout(path: Path, shape: Shape, token_id: Callable[[str], int]) -> None:
    """The files of the shape's layout, but for config, weights and tokenizer."""
    if shape.layout == "logit-score":
        _write_logit_score(path, token_id)
    elif shape.layout == "qwen3-embedding":
        _write_older(path, shape)
        write_json(path / _PROMPTS_FILE, _prompts(QWEN3_PROMPTS, None))
    elif shape.layout == "older":
        _write_older(path, shape)
        write_json(path / _TRANSFORMER_FILE, _lengths(shape, do_lower_case=False))
    elif shape.layout == "prompts":
        _write_older(path, shape, include_prompt=False)
        write_json(path / _TRANSFORMER_FILE, _lengths(shape, do_lower_case=True))
        write_json(path / _PROMPTS_FILE, _prompts(E5_PROMPTS, "query"))
    elif shape.layout == "dense":
        _write_dense_embedder(path, shape)


def write_m3_heads(path: Path, model: Any) -> None:
    """bge-m3's two heads, half precision like the published ones: whoever reads them widens them.

    The sparse weights leave out what the tokens of a text have in common, which would make all of
    them positive or none: about half of a text's tokens weigh nothing, the others some 0.3.
    """
    hidden = model.config.hidden_size
    sparse, colbert = nn.Linear(hidden, 1), nn.Linear(hidden, hidden)
    nn.init.normal_(sparse.weight, std=hidden**-0.5)
    nn.init.normal_(colbert.weight, std=hidden**-0.5)
    nn.init.normal_(colbert.bias, std=0.1)
    with torch.no_grad():
        texts = model(torch.randint(4, 2000, (16, 8))).last_hidden_state.mean(1)
        common = torch.linalg.svd(texts, full_matrices=False).Vh[:8]
        sparse.weight.sub_(sparse.weight @ common.T @ common)
        sparse.bias.fill_(0.2)
    torch.save(sparse.half().state_dict(), path / "sparse_linear.pt")
    torch.save(colbert.half().state_dict(), path / "colbert_linear.pt")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_older(path: Path, shape: Shape, include_prompt: bool = True) -> None:
    """Before sentence-transformers 5: one switch for each pooling mode."""
    write_json(path / "modules.json", _modules(_OLDER))
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    switches = (*names, "weightedmean_tokens", "lasttoken")
    on = _SWITCHES[shape.pooling]
    pooling = {f"pooling_mode_{switch}": switch == on for switch in switches}
    size = {"word_embedding_dimension": shape.sizes["hidden_size"]}
    write_json(path / _POOLING_FILE, {**size, **pooling, "include_prompt": include_prompt})


_OLDER = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
_TRANSFORMER = ("", "sentence_transformers.base.modules.transformer.Transformer")
_DENSE = (
    _TRANSFORMER,
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Dense", "sentence_transformers.base.modules.dense.Dense"),
    ("3_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)
_LOGIT_SCORE = (
    _TRANSFORMER,
    ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
)
_VECTOR_KEYS = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}


def _write_dense_embedder(path: Path, shape: Shape) -> None:
    """sentence-transformers 6: one pooling name, and no length but the tokenizer's."""
    size = shape.sizes["hidden_size"]
    write_json(path / "modules.json", _modules(_DENSE))
    pooling = {"embedding_dimension": size, "pooling_mode": shape.pooling, "include_prompt": True}
    write_json(path / _POOLING_FILE, pooling)
    write_json(path / _TRANSFORMER_FILE, _task("feature-extraction", "last_hidden_state"))
    write_json(path / _PROMPTS_FILE, {**_prompts({}, None), "model_type": "SentenceTransformer"})
    write_json(path / "3_Normalize" / "config.json", _VECTOR_KEYS)
    _write_dense(path / "2_Dense", size)


def _write_dense(path: Path, size: int) -> None:
    config = {
        "in_features": size,
        "out_features": DENSE_SIZE,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
        **_VECTOR_KEYS,
    }
    write_json(path / "config.json", config)
    linear = nn.Linear(size, DENSE_SIZE)
    nn.init.normal_(linear.weight, std=size**-0.5)
    nn.init.normal_(linear.bias, std=0.1)
    tensors = {f"linear.{name}": value for name, value in linear.state_dict().items()}
    save_file(tensors, path / "model.safetensors")


def _write_logit_score(path: Path, token_id: Callable[[str], int]) -> None:
    """A causal reranker as a CrossEncoder: the prompt is a chat template with two more roles."""
    write_json(path / "modules.json", _modules(_LOGIT_SCORE))
    ids = {"true_token_id": token_id("yes"), "false_token_id": token_id("no")}
    write_json(path / "1_LogitScore/config.json", {**ids, "module_input_name": "causal_logits"})
    task = _task("text-generation", "logits")
    task["modality_config"]["message"] = {**task["modality_config"]["text"], "format": "flat"}
    write_json(path / _TRANSFORMER_FILE, task)
    config: dict[str, Any] = {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "default_prompt_name": None,
        "model_type": "CrossEncoder",
        "prompts": {},
    }
    write_json(path / _PROMPTS_FILE, config)
    (path / "chat_template.jinja").write_text(_RERANK_TEMPLATE, encoding="utf-8")


def _task(task: str, output: str) -> dict[str, Any]:
    names = {"feature-extraction": "token_embeddings", "text-generation": "causal_logits"}
    return {
        "transformer_task": task,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": names[task],
    }


def _lengths(shape: Shape, do_lower_case: bool) -> dict[str, Any]:
    return {"max_seq_length": shape.max_length, "do_lower_case": do_lower_case}


def _prompts(prompts: dict[str, str], default: str | None) -> dict[str, Any]:
    return {
        "prompts": prompts,
        "default_prompt_name": default,
        "similarity_fn_name": "cosine",
    }


def _modules(kinds: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(kinds)
    ]
