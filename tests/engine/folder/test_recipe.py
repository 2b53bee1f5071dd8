"""What is read from a folder's JSON files, and which folders are refused. No weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.folder.recipe import Overrides, read_recipe
from tests.engine.conftest import change_json, write_json

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 32,
    "max_position_embeddings": 512,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "max_position_embeddings": 40960,
}
CROSS = {**BERT, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
OLDER = "sentence_transformers.models."
NEWER = "sentence_transformers.base.modules."
VECTOR = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
DENSE = {"in_features": 32, "out_features": 24, "bias": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of which nothing is known but its config."""
    return make(tmp_path / "mine", BERT)


def make(folder: Path, config: dict[str, Any]) -> Path:
    write_json(folder / "config.json", config)
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


def list_modules(folder: Path, *modules: tuple[str, str]) -> None:
    """modules.json with (path, type) of each."""
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)


def add_pooling(folder: Path, *more: tuple[str, str]) -> None:
    """Mean pooling, and modules behind it."""
    modules = (("", f"{OLDER}Transformer"), ("1_Pooling", f"{OLDER}Pooling"), *more)
    list_modules(folder, *modules)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weighted_mean",)),
        ({"pooling_mode_lasttoken": True}, ("last",)),
        ({"pooling_mode": "lasttoken"}, ("last",)),
        ({"pooling_mode": "weightedmean"}, ("weighted_mean",)),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, ("mean_sqrt_len",)),
        ({"pooling_mode": ["cls"]}, ("cls",)),
        ({"pooling_mode": ["mean", "cls", "max"]}, ("mean", "cls", "max")),
    ],
)
def test_pooling_comes_from_the_models_own_file_in_either_spelling(
    folder: Path, stored: dict[str, Any], wanted: tuple[str, ...]
) -> None:
    write_json(folder / "1_Pooling" / "config.json", stored)
    recipe = read_recipe(folder)
    assert (recipe.pooling, recipe.sources["pooling"]) == (wanted, "1_Pooling/config.json")
    assert recipe.dim == 32 * len(wanted)


def test_several_switches_are_joined_in_the_order_of_sentence_transformers(folder: Path) -> None:
    switches = ("lasttoken", "mean_tokens", "weightedmean_tokens", "max_tokens", "cls_token")
    stored = {f"pooling_mode_{name}": True for name in switches}
    write_json(folder / "1_Pooling" / "config.json", stored)
    assert read_recipe(folder).pooling == ("cls", "max", "mean", "weighted_mean", "last")


def test_pooling_follows_modules_json_to_another_folder(folder: Path) -> None:
    list_modules(folder, ("", f"{OLDER}Transformer"), ("3_Pooling", f"{OLDER}Pooling"))
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(folder / "3_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    recipe = read_recipe(folder)
    assert (recipe.pooling, recipe.sources["pooling"]) == (("cls",), "3_Pooling/config.json")


@pytest.mark.parametrize(("config", "wanted"), [(QWEN3, "last"), (BERT, "mean")])
def test_pooling_without_a_file_is_the_familys(
    tmp_path: Path, config: dict[str, Any], wanted: str
) -> None:
    recipe = read_recipe(make(tmp_path / "mine", config))
    assert recipe.pooling == (wanted,)
    assert recipe.sources["pooling"].startswith("no pooling config: default of ")


def test_the_setting_goes_before_the_pooling_file(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    recipe = read_recipe(folder, Overrides(pooling="max"))
    assert (recipe.pooling, recipe.sources["pooling"]) == (("max",), "setting EMBEDDING_POOLING")


@pytest.mark.parametrize(("stored", "wanted"), [({}, True), ({"include_prompt": False}, False)])
def test_a_prompt_counts_in_pooling_unless_the_file_says_no(
    folder: Path, stored: dict[str, Any], wanted: bool
) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, **stored})
    assert read_recipe(folder).include_prompt is wanted


def test_normalize_counts_before_a_dense_and_not_at_the_end(folder: Path) -> None:
    add_pooling(
        folder,
        ("2_Normalize", f"{OLDER}Normalize"),
        ("3_Dense", f"{OLDER}Dense"),
        ("4_Dropout", f"{OLDER}Dropout"),
        ("5_LayerNorm", f"{OLDER}LayerNorm"),
        ("6_Normalize", f"{NEWER}normalize.Normalize"),
    )
    write_json(folder / "3_Dense" / "config.json", DENSE)
    write_json(folder / "5_LayerNorm" / "config.json", {"dimension": 24})
    recipe = read_recipe(folder)
    assert [module.kind for module in recipe.modules] == ["Normalize", "Dense", "LayerNorm"]
    assert recipe.dim == 24


def test_the_last_dense_says_how_wide_vectors_are(folder: Path) -> None:
    add_pooling(folder, ("2_Dense", f"{NEWER}dense.Dense"), ("3_Dense", f"{NEWER}dense.Dense"))
    write_json(folder / "2_Dense" / "config.json", {**DENSE, **VECTOR, "out_features": 64})
    write_json(folder / "3_Dense" / "config.json", {**DENSE, **VECTOR, "in_features": 64})
    assert read_recipe(folder).dim == 24


def test_without_modules_json_there_is_nothing_after_pooling(folder: Path) -> None:
    write_json(folder / "2_Dense" / "config.json", DENSE)
    assert read_recipe(folder).modules == ()


def test_a_module_folder_lies_below_the_model_whatever_modules_json_says(folder: Path) -> None:
    write_json(folder.parent / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True})
    list_modules(folder, ("", f"{OLDER}Transformer"), ("../1_Pooling", f"{OLDER}Pooling"))
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    assert read_recipe(folder).pooling == ("cls",)


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "setting", "wanted", "source"),
    [
        (64, 128, None, 64, "sentence_bert_config.json"),
        (None, 128, None, 128, "tokenizer_config.json"),
        (None, 1e30, None, 512, "config.json"),
        (None, None, None, 512, "config.json"),
        (10_000, 128, None, 512, "config.json"),
        (64, 128, 20, 20, "setting EMBEDDING_MAX_LENGTH"),
        (64, 128, 512, 512, "setting EMBEDDING_MAX_LENGTH"),
        (64, 128, 513, 512, "config.json; EMBEDDING_MAX_LENGTH is more than that"),
    ],
)
def test_longest_input_is_the_first_that_is_named_within_the_positions(
    folder: Path,
    sentence: int | None,
    tokenizer: float | None,
    setting: int | None,
    wanted: int,
    source: str,
) -> None:
    if sentence is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": sentence})
    if tokenizer is not None:
        write_json(folder / "tokenizer_config.json", {"model_max_length": tokenizer})
    recipe = read_recipe(folder, Overrides(max_length=setting))
    assert (recipe.max_length, recipe.sources["max_length"]) == (wanted, source)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({**BERT, "model_type": "xlm-roberta", "pad_token_id": 1}, 510),
        ({**BERT, "model_type": "roberta"}, 510),
        (QWEN3, 32768),
        ({**QWEN3, "max_position_embeddings": 2048}, 2048),
    ],
)
def test_a_familys_positions_bound_the_longest_input(
    tmp_path: Path, config: dict[str, Any], wanted: int
) -> None:
    assert read_recipe(make(tmp_path / "mine", config)).max_length == wanted


def test_lower_case_and_prompts_are_read(folder: Path) -> None:
    assert not read_recipe(folder).lower_case
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    recipe = read_recipe(folder)
    assert recipe.lower_case
    assert recipe.prompts.choose("query") == "q: "
    assert recipe.sources["prompts"] == "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ([], ("dense",)),
        (["sparse_linear.pt"], ("dense", "sparse")),
        (["colbert_linear.pt"], ("dense", "colbert")),
        (["colbert_linear.pt", "sparse_linear.pt"], ("dense", "sparse", "colbert")),
    ],
)
def test_heads_beside_the_weights_are_outputs(
    folder: Path, files: list[str], wanted: tuple[str, ...]
) -> None:
    for name in files:
        (folder / name).touch()
    assert read_recipe(folder).outputs == wanted


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ],
)
def test_weights_may_lie_in_any_of_the_published_files(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert read_recipe(folder).kind == "embedder"


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [
        ("mine", BERT, "embedder"),
        ("mine", QWEN3, "embedder"),
        ("Qwen3-Embedding-0.6B", QWEN3, "embedder"),
        ("Qwen3-Reranker-0.6B", QWEN3, "causal reranker"),
        ("bge-reranker-base", CROSS, "cross-encoder"),
        ("mine", CROSS, "cross-encoder"),
        ("my-rerank", {**CROSS, "model_type": "qwen3"}, "cross-encoder"),
        ("mine", {**CROSS, "id2label": None, "num_labels": 1}, "cross-encoder"),
    ],
)
def test_the_kind_comes_from_architecture_labels_and_name(
    tmp_path: Path, name: str, config: dict[str, Any], kind: str
) -> None:
    recipe = read_recipe(make(tmp_path / name, config))
    assert (recipe.kind, recipe.is_reranker) == (kind, kind != "embedder")
    assert recipe.sources["kind"].startswith("config.json: ")
    if recipe.is_reranker:
        assert (recipe.pooling, recipe.dim, recipe.outputs) == ((), 0, ())


def test_a_logit_score_module_makes_a_causal_reranker_and_names_its_tokens(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine", QWEN3)
    list_modules(
        folder,
        ("", f"{NEWER}transformer.Transformer"),
        ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
    )
    write_json(folder / "1_LogitScore" / "config.json", {"true_token_id": 9, "false_token_id": 7})
    recipe = read_recipe(folder)
    assert (recipe.kind, recipe.yes_no) == ("causal reranker", (9, 7))
    assert recipe.sources["kind"] == "modules.json: LogitScore"
    change_json(folder / "1_LogitScore" / "config.json", false_token_id=None)
    with pytest.raises(ModelError, match="1_LogitScore: needs true_token_id and false_token_id"):
        read_recipe(folder)
