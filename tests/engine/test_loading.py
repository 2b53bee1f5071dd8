"""What loading logs, and where weights come from."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.loaded import load_embedder
from engine.errors import ModelError
from engine.fitting import LoadOptions
from engine.folder.recipe import Overrides
from engine.loading import load_model
from engine.text.tokens import TextLimits
from tests.engine.conftest import CPU, Embedders, Folders
from tests.engine.layers import forward_of


@pytest.mark.parametrize(
    ("name", "overrides", "wanted"),
    [
        (
            "tiny-prompts",
            {},
            [
                "bert on cpu",
                "computes in float32 (default)",
                "embedder (config.json: BertModel)",
                "pooling mean (1_Pooling/config.json), without the prompt's tokens",
                "outputs dense, 32 values",
                "prompts from config_sentence_transformers.json",
                "longest input 64 tokens (sentence_bert_config.json)",
                "layout unpadded, linear layers prepacked",
            ],
        ),
        (
            "tiny-bge-m3",
            {"pooling": "mean", "max_length": 9000, "prompts": {"query": "q: "}},
            [
                "pooling mean (setting EMBEDDING_POOLING)",
                "outputs dense,sparse,colbert, 32 values",
                "prompts from setting EMBEDDING_PROMPTS",
                "longest input 8192 tokens (config.json; EMBEDDING_MAX_LENGTH is more than that)",
            ],
        ),
        (
            "tiny-dense",
            {},
            [
                "outputs dense, 24 values",
                "longest input 64 tokens (tokenizer_config.json)",
                "Dense after pooling (modules.json)",
            ],
        ),
        (
            "tiny-qwen3-embedding",
            {},
            [
                "embedder (config.json: Qwen3ForCausalLM)",
                "longest input 32768 tokens (config.json)",
            ],
        ),
        ("tiny-qwen3-reranker", {}, ["causal reranker (modules.json: LogitScore)"]),
        (
            "tiny-qwen3-reranker-untied",
            {},
            ["causal reranker (config.json: Qwen3ForCausalLM, and the folder's name)"],
        ),
        (
            "tiny-bge-reranker",
            {"max_length": 128},
            [
                "cross-encoder (config.json: XLMRobertaForSequenceClassification with one label)",
                "longest input 128 tokens (setting EMBEDDING_MAX_LENGTH)",
            ],
        ),
    ],
)
def test_the_log_names_every_decision_and_the_file_behind_it(
    tiny_folder: Folders,
    project_log: pytest.LogCaptureFixture,
    name: str,
    overrides: dict[str, Any],
    wanted: list[str],
) -> None:
    options = LoadOptions(overrides=Overrides(**overrides))
    load_model("mine", tiny_folder(name), CPU, options)
    for line in wanted:
        assert f"model mine: {line}" in project_log.messages


def test_weights_in_a_pytorch_bin_file_are_read(copy_tiny: Folders, load_tiny: Embedders) -> None:
    folder = copy_tiny("tiny-bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model, wanted = load_embedder("m", folder, CPU, LoadOptions()), load_tiny("tiny-bert")
    tokens = model.tokenize(["w1 w2 w3"], TextLimits(64))
    np.testing.assert_array_equal(model.run(tokens)[0].dense, wanted.run(tokens)[0].dense)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "colbert_linear.pt"])
def test_pickled_code_in_a_model_never_runs(copy_tiny: Folders, tmp_path: Path, name: str) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    folder = copy_tiny("tiny-bge-m3")
    (folder / name).write_bytes(pickle.dumps({"weight": Payload()}, protocol=2))
    with pytest.raises(ModelError):
        load_embedder("m", folder, CPU, LoadOptions())
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_re_laid_stay_mapped_from_the_file(
    load_tiny: Embedders, tiny_folder: Folders
) -> None:
    """The embedding table always, linear layers with linear=plain."""
    model = load_tiny("tiny-bert", linear="plain")
    path = str(tiny_folder("tiny-bert") / "model.safetensors")
    mapped = [
        tuple(int(bound, 16) for bound in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if line.endswith(path)
    ]
    for name, weight in forward_of(model).named_parameters():
        address = weight.data_ptr()
        assert any(low <= address < high for low, high in mapped), name


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
)
def test_too_little_memory_is_no_fault_of_the_folder(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It must not be remembered against it: the next try may find room."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("engine.loading.AutoModel.from_pretrained", fail)
    with pytest.raises(MemoryError):
        load_embedder("m", tiny_folder("tiny-bert"), CPU, LoadOptions())
