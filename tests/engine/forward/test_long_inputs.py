"""The longest inputs of bge-m3 and Qwen3: the oracle's vectors, in memory that grows linearly."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bench.measure import words
from engine.model import EmbeddingModel
from engine.text.tokens import TextLimits, Tokens
from serving import embedding as vectors
from tests.engine.conftest import Embedders, Folders
from tests.engine.oracle import TOLERANCE
from tests.servers import ROOT, clean_environment

LENGTHS = {"tiny-bge-m3": 8192, "tiny-qwen3-embedding": 32768}
POOLED = {"tiny-bge-m3": 0, "tiny-qwen3-embedding": -1}  # the token that is the vector


@functools.cache
def stock_states(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    """`[T, H]`. The scores of eager attention would take 17 GB at 32,768 tokens; torch's fused
    attention, with no mask to add, never holds them all."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        states: torch.Tensor = model.eval()(
            input_ids=torch.tensor([ids]),
            **({"use_cache": False} if model.config.model_type == "qwen3" else {}),
        ).last_hidden_state[0]
    return states


def longest(model: EmbeddingModel, outputs: tuple[str, ...] = ("dense",)) -> Tokens:
    """A text that is longer than the model, cut."""
    text = words(random.Random(4), model.max_length + 100)
    (tokens,) = model.tokenize([text], TextLimits(model.max_length), outputs=outputs)
    return tokens


@pytest.mark.parametrize("name", LENGTHS)
def test_the_longest_text_equals_stock_transformers_in_a_mixed_batch(
    load_tiny: Embedders, tiny_folder: Folders, name: str
) -> None:
    model = load_tiny(name)
    long = longest(model)
    short = model.tokenize(["w1", "w2 w3"], TextLimits(64))
    assert (model.layout, len(long.ids)) == ("unpadded", LENGTHS[name])
    got = model.run([short[0], long, short[1]])
    wanted = stock_states(tiny_folder(name), tuple(long.ids))[POOLED[name]].numpy()
    finished = vectors.finish(np.stack([got[1].dense, wanted]))
    np.testing.assert_allclose(finished[0], finished[1], atol=TOLERANCE)


def test_token_outputs_of_the_longest_text_equal_the_heads_over_stock_states(
    load_tiny: Embedders, tiny_folder: Folders
) -> None:
    model, folder = load_tiny("tiny-bge-m3"), tiny_folder("tiny-bge-m3")
    tokens = longest(model, ("dense", "sparse", "colbert"))
    (got,) = model.run([tokens])
    states = stock_states(folder, tuple(tokens.ids))[1:]
    head = torch.load(folder / "colbert_linear.pt", weights_only=True)
    wanted = states @ head["weight"].float().T + head["bias"].float()
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    assert got.colbert is not None
    np.testing.assert_allclose(got.colbert, wanted.numpy(), atol=TOLERANCE)
    assert got.sparse is not None
    assert set(got.sparse.token_ids.tolist()) < set(tokens.ids)


# Peak resident memory of a process that runs one sequence of n and one of 4n tokens, each peak
# counted from the one before (the kernel's mark is set back; ru_maxrss cannot be, and starts at the
# parent's). Blocks from 64 KiB on go back to the kernel at once, so that no freed one hides a new.
# Measured: bge-m3 5 MB at 2,048 tokens and 13 MB at 8,192, Qwen3 18 MB at 8,192 and 64 MB at
# 32,768: 2.6 and 3.5 times for 4 times the length. One layer's scores, held at once, would be 67 MB
# and 1.1 GB for bge-m3, 1.1 GB and 17 GB for Qwen3: 16 times.
_MEASURE = """
import json, sys
from pathlib import Path
from engine.devices import Device
from bench.loaded import load_embedder
from engine.fitting import LoadOptions
from engine.text.tokens import TextLimits, Tokens

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))

def growth(length):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    model.run([Tokens([5 + i * 7 % 500 for i in range(length)])])
    return resident("VmHWM") - before

measured = {}
for folder, length in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    cpu = Device("cpu", "cpu", "float32", "unpadded")
    model = load_embedder("m", Path(folder), cpu, LoadOptions())
    growth(1024)  # threads and their buffers are there from now on
    measured[Path(folder).name] = growth(length), growth(4 * length)
print(json.dumps(measured))
"""
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def test_memory_grows_with_the_length_and_not_with_its_square(tiny_folder: Folders) -> None:
    arguments = [[str(tiny_folder(name)), str(length // 4)] for name, length in LENGTHS.items()]
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments[0], *arguments[1]],
        cwd=ROOT,
        env=clean_environment(_ALLOCATOR),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])
    assert set(measured) == set(LENGTHS)
    for name, (at_quarter, at_longest) in measured.items():
        all_scores = 4 * LENGTHS[name] ** 2 * 4  # of one layer's 4 heads, float32
        assert at_quarter > 1e6, name
        assert at_longest < 6 * at_quarter, name
        assert at_longest < all_scores / 10, name
