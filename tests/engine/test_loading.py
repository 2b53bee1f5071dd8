"""What loading decides and refuses, from files alone."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError, TextTooLong
from engine.loading import LoadOptions, load_model
from engine.model import EmbeddingModel
from engine.pooling import Pooling, choose_pooling
from tests.engine.conftest import CPU


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny BERT whose files a test may spoil."""
    return Path(shutil.copytree(tiny_folder("tiny-bert"), tmp_path / "model"))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling_comes_from_the_models_own_file(
    tmp_path: Path, config: dict[str, Any], wanted: Pooling
) -> None:
    write(tmp_path / "1_Pooling" / "config.json", config)
    assert choose_pooling(tmp_path, None, False) == (wanted, "1_Pooling/config.json")


def test_pooling_follows_modules_json_to_another_folder(tmp_path: Path) -> None:
    write(tmp_path / "modules.json", [{"type": "x.models.Pooling", "path": "3_Pooling"}])
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write(tmp_path / "3_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    assert choose_pooling(tmp_path, None, False)[0] == "cls"


@pytest.mark.parametrize(("is_decoder", "wanted"), [(True, "last"), (False, "mean")])
def test_pooling_without_a_config_is_the_familys(
    tmp_path: Path, is_decoder: bool, wanted: Pooling
) -> None:
    assert choose_pooling(tmp_path, None, is_decoder)[0] == wanted


def test_the_setting_overrides_pooling(load_tiny: Callable[..., EmbeddingModel]) -> None:
    assert load_tiny("tiny-bert", pooling="mean").pooling == "mean"
    assert load_tiny("tiny-bert").pooling == "cls"


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {},
    ],
)
def test_a_pooling_that_is_not_there_is_refused_not_replaced(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    write(tmp_path / "1_Pooling" / "config.json", config)
    with pytest.raises(ModelError, match="pooling"):
        choose_pooling(tmp_path, None, False)


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]", encoding="utf-8")


def make_unknown(folder: Path) -> None:
    write(folder / "config.json", {"model_type": "no-such-family"})


def lose_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {name: weight.clone() for name, weight in weights.items() if "layer.1." not in name}
    save_file(kept, path, metadata={"format": "pt"})


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write(folder / "config.json", {**config, "intermediate_size": 256})


def add_dense(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "x.models.Dense"})
    write(folder / "modules.json", modules)


def make_reranker(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write(folder / "config.json", {**config, "architectures": ["BertForSequenceClassification"]})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_config, "config.json"),
        (spoil_weights, "model"),
        (remove_weights, "model.safetensors"),
        (spoil_tokenizer, "tokenizer.json"),
        (make_unknown, "no-such-family"),
        (make_reranker, "is a reranker"),
        (lose_a_layer, "weights lack .*layer.1.* more"),
        (widen, "mismatch|do not fit"),
        (add_dense, "module Dense is not supported"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused_with_the_reason(
    copied: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(copied)
    with pytest.raises(ModelError, match=says):
        load_model("m", copied, CPU, LoadOptions())


def test_weights_in_a_pytorch_bin_file_are_read(
    copied: Path, load_tiny: Callable[..., EmbeddingModel]
) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    model, wanted = load_model("m", copied, CPU, LoadOptions()), load_tiny("tiny-bert")
    tokens = model.tokenize(["w1 w2 w3"], 64, True, 0)
    assert (model.run(tokens) == wanted.run(tokens)).all()


def test_pickled_code_in_a_model_never_runs(copied: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload()}, protocol=2))
    with pytest.raises(ModelError):
        load_model("m", copied, CPU, LoadOptions())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("stored", "setting", "wanted"),
    [(64, None, 64), (None, None, 64), (10_000, None, 512), (64, 20, 20), (None, 512, 512)],
)
def test_longest_input_is_the_first_that_is_named_within_the_positions(
    copied: Path, stored: int | None, setting: int | None, wanted: int
) -> None:
    path = copied / "sentence_bert_config.json"
    path.unlink() if stored is None else write(path, {"max_seq_length": stored})
    assert load_model("m", copied, CPU, LoadOptions(max_length=setting)).max_length == wanted


def test_a_longer_input_than_the_model_has_positions_is_refused(copied: Path) -> None:
    with pytest.raises(ModelError, match="EMBEDDING_MAX_LENGTH=513"):
        load_model("m", copied, CPU, LoadOptions(max_length=513))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3"])
def test_truncation_keeps_the_head_and_the_special_tokens(
    load_tiny: Callable[..., EmbeddingModel], name: str
) -> None:
    model = load_tiny(name)
    text = "w1 w2 w3 w4 w5 w6 w7 w8"
    whole = model.tokenize([text], 64, True, 0)[0].ids
    cut = model.tokenize([text], 6, True, 0)[0].ids
    special = model.tokenize([""], 64, True, 0)[0].ids
    assert len(cut) == 6
    assert cut[-1] == whole[-1] == special[-1]  # [SEP], </s>, <|endoftext|>
    assert cut[:-1] == whole[: len(cut) - 1]


def test_refused_truncation_names_index_length_and_limit(
    load_tiny: Callable[..., EmbeddingModel],
) -> None:
    with pytest.raises(TextTooLong) as caught:
        load_tiny("tiny-bert").tokenize(["w1", "w1 " * 100], 64, False, 30)
    assert (caught.value.index, caught.value.num_tokens, caught.value.max_tokens) == (31, 102, 64)


def test_refused_truncation_of_a_huge_text_counts_its_head_only(
    load_tiny: Callable[..., EmbeddingModel],
) -> None:
    with pytest.raises(TextTooLong, match="at least") as caught:
        load_tiny("tiny-bert").tokenize(["w1 " * 2_000_000], 64, False, 0)
    assert 64 < caught.value.num_tokens < 100_000


def test_a_huge_text_of_few_tokens_is_no_longer_than_its_tokens(
    load_tiny: Callable[..., EmbeddingModel],
) -> None:
    text = "w1" + " " * 500_000 + "w2"
    model = load_tiny("tiny-bert")
    wanted = model.tokenize(["w1 w2"], 64, True, 0)[0].ids
    for truncate in (True, False):
        assert model.tokenize([text], 64, truncate, 0)[0].ids == wanted


def test_weights_that_are_not_re_laid_stay_mapped_from_the_file(
    load_tiny: Callable[..., EmbeddingModel], tiny_folder: Callable[[str], Path]
) -> None:
    """The embedding table always, linear layers with linear=plain."""
    model = load_tiny("tiny-bert", linear="plain")
    path = str(tiny_folder("tiny-bert") / "model.safetensors")
    mapped = [
        tuple(int(bound, 16) for bound in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if line.endswith(path)
    ]
    for name, weight in model.named_parameters():
        address = weight.data_ptr()
        assert any(low <= address < high for low, high in mapped), name
