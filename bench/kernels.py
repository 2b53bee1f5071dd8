"""The kernels that engine/ chooses on a CPU, each against PyTorch's usual one in the same rounds.

    python -m bench.kernels [--rounds 15]

Packed linear layers against `F.linear`; plain attention against fused SDPA, one sequence and a run
of equal ones. Ratios above 1: our choice is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench import measure
from engine.attention import Bounds, packed_attention
from engine.cpus import count_cpus
from engine.linear import PackedLinear

_LINEAR = [(16, 384, 1536), (16, 1024, 4096), (128, 1024, 4096), (1024, 384, 1536)]
_ATTENTION = [(1, 20, 12, 32), (1, 100, 12, 32), (1, 100, 16, 64), (60, 12, 12, 32)]


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    """Enough calls for a clock to see."""

    @torch.inference_mode()
    def many() -> None:
        for _ in range(times):
            work()

    return many


def compare(ours: Callable[[], object], usual: Callable[[], object], rounds: int) -> float:
    taken = measure.rounds({"ours": repeated(ours, 20), "usual": repeated(usual, 20)}, rounds)
    return round(measure.median_ratio(taken["usual"], taken["ours"]), 2)


def linear_ratio(tokens: int, columns: int, rows: int, rounds: int) -> float:
    layer = nn.Linear(columns, rows).requires_grad_(False)
    packed, x = PackedLinear(layer), torch.randn(tokens, columns)
    return compare(lambda: packed(x), lambda: layer(x), rounds)


def attention_ratio(count: int, length: int, heads: int, dim: int, rounds: int) -> float:
    q, k, v = (torch.randn(1, count * length, heads, dim).transpose(1, 2) for _ in range(3))
    module = nn.Module()
    bounds = Bounds.of([length] * count)
    q_n, k_n, v_n = (t.reshape(heads, count, length, dim).transpose(0, 1) for t in (q, k, v))
    return compare(
        lambda: packed_attention(module, q, k, v, None, packed_bounds=bounds),
        lambda: functional.scaled_dot_product_attention(q_n, k_n, v_n).transpose(1, 2).contiguous(),
        rounds,
    )


def run(rounds: int) -> dict[str, Any]:
    torch.set_num_threads(count_cpus())
    torch.manual_seed(0)
    return {
        "packed_linear_over_f_linear": {
            f"{tokens} tokens, {columns} to {rows}": linear_ratio(tokens, columns, rows, rounds)
            for tokens, columns, rows in _LINEAR
        },
        "attention_over_fused_sdpa": {
            f"{count} of {length} tokens, {heads} heads of {dim}": attention_ratio(
                count, length, heads, dim, rounds
            )
            for count, length, heads, dim in _ATTENTION
        },
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="chosen CPU kernels against the usual ones")
    parser.add_argument("--rounds", type=int, default=15)
    measure.save("kernels", run(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
