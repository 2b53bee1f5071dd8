"""The kernels that engine/ chooses on a CPU, each against PyTorch's usual one in the same rounds.

    python -m bench.kernels [--rounds 15]

Packed linear layers against `F.linear`; plain attention against fused SDPA, one sequence and a run
of equal ones, causal and grouped-query too; segments behind a common beginning against the same
sequences whole. Ratios above 1: our choice is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import measure
from engine.cpus import count_cpus
from engine.forward.attention import attend
from engine.forward.linear import PrepackedLinear
from engine.forward.plan import Bounds, Heads

_LINEAR = [(16, 384, 1536), (16, 1024, 4096), (128, 1024, 4096), (1024, 384, 1536)]
_CAUSAL = [(1, 12), (1, 100), (1, 170), (1, 256), (20, 32), (60, 12)]  # count, length
_BEHIND = [(30, 30, 12), (20, 100, 12), (20, 100, 40), (10, 70, 110)]  # count, path, length
_QWEN3_HEADS = (16, 8, 128)  # query heads, key heads, width: Qwen3-0.6B
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
    packed, x = PrepackedLinear(layer), torch.randn(tokens, columns)
    return compare(lambda: packed(x), lambda: layer(x), rounds)


def attention_ratio(count: int, length: int, heads: int, dim: int, rounds: int) -> float:
    row = torch.randn(count * length, 3 * heads, dim)
    q, k, v = (torch.randn(count, heads, length, dim) for _ in range(3))
    return compare(
        _ours(row, Bounds((length,) * count), Heads(heads, heads)),
        lambda: functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous(),
        rounds,
    )


def causal_ratio(count: int, length: int, rounds: int) -> float:
    """Grouped-query attention of whole sequences."""
    usual = _fused_causal(*_qwen3_rows(count * length), count)
    return compare(_ours_causal(Bounds((length,) * count)), usual, rounds)


def behind_ratio(count: int, path: int, length: int, rounds: int) -> float:
    """A beginning once and its continuations, against all sequences whole."""
    bounds = Bounds((path, *(length,) * count), ((), *(((0, path),),) * count))
    usual = _fused_causal(*_qwen3_rows(count * (path + length)), count)
    return compare(_ours_causal(bounds), usual, rounds)


def _qwen3_rows(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, dim = _QWEN3_HEADS
    q, k, v = (torch.randn(1, num_tokens, n, dim) for n in (heads, kv_heads, kv_heads))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _ours_causal(bounds: Bounds) -> Callable[[], object]:
    heads = Heads(*_QWEN3_HEADS[:2], causal=True)
    return _ours(torch.randn(sum(bounds.lengths), heads.stride, _QWEN3_HEADS[2]), bounds, heads)


def _ours(row: Tensor, bounds: Bounds, heads: Heads) -> Callable[[], object]:
    """The plan is made once, as for all layers of a batch."""
    return lambda: attend(row, bounds, heads)


def _fused_causal(q: Tensor, k: Tensor, v: Tensor, count: int) -> Callable[[], object]:
    """As transformers calls it: keys and values repeated for every query head."""
    q, k, v = (t.reshape(t.shape[1], count, -1, t.shape[3]).transpose(0, 1) for t in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    sdpa = functional.scaled_dot_product_attention

    def work() -> object:
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        return sdpa(q, keys, values, is_causal=True).transpose(1, 2).contiguous()

    return work


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
        "causal_grouped_attention_over_fused_sdpa": {
            f"{count} of {length} tokens": causal_ratio(count, length, rounds)
            for count, length in _CAUSAL
        },
        "behind_a_path_over_whole_sequences": {
            f"{count} of {length} tokens behind {path}": behind_ratio(count, path, length, rounds)
            for count, path, length in _BEHIND
        },
        "heads": dict(zip(("query", "key", "width"), _QWEN3_HEADS, strict=True)),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="chosen CPU kernels against the usual ones")
    parser.add_argument("--rounds", type=int, default=15)
    measure.save("kernels", run(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
