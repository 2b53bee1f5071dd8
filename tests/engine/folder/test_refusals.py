"""Folders that would be served wrong are refused, with the file and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bench.loaded import load_embedder, load_reranker
from engine.errors import ModelError
from engine.fitting import LoadOptions
from engine.folder.recipe import read_recipe
from engine.loading import load_model
from tests.engine.conftest import CPU, Folders, change_json, write_json
from tests.engine.folder.test_recipe import BERT, CROSS, DENSE, OLDER, QWEN3, add_pooling, make


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def tear_modules(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"type": "x.Pool', encoding="utf-8")


def tear_pooling(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text("", encoding="utf-8")


def tear_prompts(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text("[1]", encoding="utf-8")


def lose_the_default_prompt(folder: Path) -> None:
    stored = {"prompts": {"query": "q: "}, "default_prompt_name": "absent"}
    write_json(folder / "config_sentence_transformers.json", stored)


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def make_reward_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    one_label = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "reward"}}
    changed = {**config, **one_label, "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]", encoding="utf-8")


def make_unknown(folder: Path) -> None:
    change_json(folder / "config.json", model_type="no-such-family")


def lose_positions(folder: Path) -> None:
    change_json(folder / "config.json", max_position_embeddings=None)


def lose_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {name: weight.clone() for name, weight in weights.items() if "layer.1." not in name}
    save_file(kept, path, metadata={"format": "pt"})


def widen(folder: Path) -> None:
    change_json(folder / "config.json", intermediate_size=256)


def pool_otherwise(folder: Path) -> None:
    change_json(folder / "1_Pooling" / "config.json", pooling_mode_first_tokens=True)


def pool_nothing(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {})


def name_another_pooling(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": ["mean", "median"]})


def add_unknown_module(folder: Path) -> None:
    add_pooling(folder, ("2_LSTM", f"{OLDER}LSTM"))


def lose_a_modules_config(folder: Path) -> None:
    add_pooling(folder, ("2_Dense", f"{OLDER}Dense"))


def read_token_vectors(folder: Path) -> None:
    add_pooling(folder, ("2_Dense", f"{OLDER}Dense"))
    stored = {**DENSE, "module_input_name": "token_embeddings"}
    write_json(folder / "2_Dense" / "config.json", stored)


def lose_a_modules_weights(folder: Path) -> None:
    add_pooling(folder, ("2_Dense", f"{OLDER}Dense"))
    write_json(folder / "2_Dense" / "config.json", DENSE)


def activate_otherwise(folder: Path) -> None:
    lose_a_modules_weights(folder)
    save_file({"linear.weight": torch.ones(24, 32)}, folder / "2_Dense" / "model.safetensors")
    change_json(folder / "2_Dense" / "config.json", activation_function="os.system")


def say_another_width(folder: Path) -> None:
    lose_a_modules_weights(folder)
    save_file({"linear.weight": torch.ones(16, 32)}, folder / "2_Dense" / "model.safetensors")


def read_another_width(folder: Path) -> None:
    lose_a_modules_weights(folder)
    save_file({"linear.weight": torch.ones(24, 48)}, folder / "2_Dense" / "model.safetensors")


def widen_a_head(folder: Path) -> None:
    torch.save({"weight": torch.ones(1, 48)}, folder / "sparse_linear.pt")


def spoil_a_head(folder: Path) -> None:
    (folder / "sparse_linear.pt").write_bytes(b"no pickle")


def label_thrice(folder: Path) -> None:
    labels = {str(i): f"LABEL_{i}" for i in range(3)}
    architectures = ["BertForSequenceClassification"]
    change_json(folder / "config.json", architectures=architectures, id2label=labels)


def classify_otherwise(folder: Path) -> None:
    changes = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    change_json(folder / "config.json", model_type="gpt2", **changes)


def score_otherwise(folder: Path) -> None:
    change_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    write_json(folder / "modules.json", [{"path": "1_LogitScore", "type": "x.LogitScore"}])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_config, r"config\.json: "),
        (tear_modules, r"modules\.json: JSONDecodeError"),
        (tear_pooling, r"1_Pooling/config\.json: "),
        (tear_prompts, r"config_sentence_transformers\.json: "),
        (lose_the_default_prompt, r"config_sentence_transformers\.json: .*'absent'"),
        (spoil_weights, r"tiny-bert.model\.safetensors: no safetensors file"),
        (remove_tokenizer, r"no tokenizer \(tokenizer\.json\)"),
        (make_reward_model, "is it a Qwen3-Reranker"),
        (remove_weights, r"no weights \(model\.safetensors or pytorch_model\.bin\)"),
        (spoil_tokenizer, r"tokenizer\.json: "),
        (make_unknown, "no-such-family"),
        (lose_positions, r"config\.json names no max_position_embeddings"),
        (lose_a_layer, r"weights lack .*layer\.1.* more"),
        (widen, "mismatch|do not fit"),
        (pool_otherwise, r"1_Pooling/config\.json: pooling .*'first_tokens'.* is not supported"),
        (pool_nothing, r"1_Pooling/config\.json: pooling \[\] is not supported"),
        (name_another_pooling, r"1_Pooling/config\.json: pooling .*'median'.* is not supported"),
        (add_unknown_module, r"modules\.json: module LSTM is not supported"),
        (lose_a_modules_config, r"2_Dense/config\.json: "),
        (read_token_vectors, "2_Dense: Dense from token_embeddings to .* is not supported"),
        (lose_a_modules_weights, r"2_Dense: none of model\.safetensors, pytorch_model\.bin"),
        (activate_otherwise, r"2_Dense: activation os\.system is not supported"),
        (say_another_width, "modules after pooling give 16 values, the config says 24"),
        (read_another_width, "modules after pooling do not fit: .*48"),
        (widen_a_head, r"sparse_linear\.pt: reads 48 values, not 32"),
        (spoil_a_head, r"sparse_linear\.pt: "),
        (label_thrice, "a classifier with 3 labels is no reranker"),
        (classify_otherwise, "rerankers of family gpt2 are not supported"),
        (score_otherwise, "causal rerankers of family llama are not supported"),
    ],
)
def test_a_folder_that_would_be_served_wrong_is_refused_with_file_and_reason(
    copy_tiny: Folders, spoil: Callable[[Path], None], says: str
) -> None:
    folder = copy_tiny("tiny-bert")
    spoil(folder)
    with pytest.raises(ModelError, match=says) as refusal:
        load_model("m", folder, CPU, LoadOptions())
    assert str(refusal.value).startswith(str(folder))


def test_a_named_causal_reranker_of_another_family_is_refused(tmp_path: Path) -> None:
    config = {**QWEN3, "model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
    with pytest.raises(ModelError, match="causal rerankers of family gemma are not supported"):
        read_recipe(make(tmp_path / "bge-reranker-v2-gemma", config))


def test_who_needs_the_other_kind_is_told(tiny_folder: Folders) -> None:
    with pytest.raises(ModelError, match="tiny-bert: not a reranker"):
        load_reranker("m", tiny_folder("tiny-bert"), CPU, LoadOptions())
    with pytest.raises(ModelError, match="tiny-bge-reranker: a reranker has no vectors"):
        load_embedder("m", tiny_folder("tiny-bge-reranker"), CPU, LoadOptions())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
PLACES = [
    ("config.json", "architectures"),
    ("config.json", "model_type"),
    ("config.json", "id2label"),
    ("config.json", "num_labels"),
    ("config.json", "hidden_size"),
    ("config.json", "max_position_embeddings"),
    ("config.json", "pad_token_id"),
    ("sentence_bert_config.json", "max_seq_length"),
    ("tokenizer_config.json", "model_max_length"),
    ("1_Pooling/config.json", "pooling_mode"),
    ("2_Dense/config.json", "out_features"),
    ("2_Dense/config.json", "module_input_name"),
    ("config_sentence_transformers.json", "prompts"),
    ("config_sentence_transformers.json", "default_prompt_name"),
    ("modules.json", ""),
]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), value=anything, architecture=st.sampled_from([BERT, CROSS]))
def test_whatever_stands_in_a_file_the_folder_is_read_or_refused(
    tmp_path: Path, place: tuple[str, str], value: Any, architecture: dict[str, Any]
) -> None:
    folder = make(tmp_path / "mine", {**architecture, "model_type": "roberta"})
    add_pooling(folder, ("2_Dense", f"{OLDER}Dense"))
    for name in ("sentence_bert_config.json", "tokenizer_config.json"):
        write_json(folder / name, {})
    write_json(folder / "2_Dense" / "config.json", DENSE)
    write_json(folder / "config_sentence_transformers.json", {})
    file, key = folder / place[0], place[1]
    stored = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**stored, key: value} if key else value)
    try:
        recipe = read_recipe(folder)
    except ModelError as error:
        assert str(folder) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert recipe.max_length > 0
        assert recipe.is_reranker or recipe.dim > 0
