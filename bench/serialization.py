"""Writing answers: how long the event loop stands still, and where a thread begins to pay.

    python -m bench.serialization [--rounds 15]

For answers of growing size (rows of 1,024 float32): milliseconds to write one on the loop, as one
call on a thread, and in parts on a thread (api/http/body.py); and the longest time for which a
ticking task was not called meanwhile, less what it takes when nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from api.http import body as writing
from bench import measure

_DIM = 1024
_NUM_ROWS = (1, 32, 64, 128, 256, 2048)


async def on_loop(answer: Any) -> bytes:
    return writing.dumps(answer)


async def on_thread(answer: Any) -> bytes:
    return await asyncio.to_thread(writing.dumps, answer)


async def in_parts(answer: Any) -> bytes:
    return await asyncio.to_thread(writing.write_in_parts, answer)


_WAYS: dict[str, Callable[[Any], Awaitable[bytes]]] = {
    "on_loop": on_loop,
    "on_thread": on_thread,
    "in_parts": in_parts,
}


async def watched(way: Callable[[Any], Awaitable[bytes]], answer: Any) -> tuple[float, float]:
    """Milliseconds of the writing, and the longest gap between two ticks of the loop."""
    gaps = [0.0]
    done = False

    async def tick() -> None:
        last = time.perf_counter()
        while not done:
            await asyncio.sleep(0)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    gaps[:] = [0.0]
    start = time.perf_counter()
    await way(answer)
    taken = time.perf_counter() - start
    await asyncio.sleep(0)
    done = True
    await ticking
    return taken * 1e3, max(gaps) * 1e3


def run(num_rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for num_rows in _NUM_ROWS:
        answer = {"embeddings": rng.standard_normal((num_rows, _DIM)).astype(np.float32)}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in _WAYS}
        for _ in range(num_rounds):
            for name, way in _WAYS.items():
                taken[name].append(asyncio.run(watched(way, answer)))
        rows[f"{num_rows} x {_DIM}"] = {name: _medians(pairs) for name, pairs in taken.items()}
    largest = rows[f"{_NUM_ROWS[-1]} x {_DIM}"]
    return {
        "longest_stop_on_loop_over_in_parts": round(
            largest["on_loop"]["longest_stop_ms"] / largest["in_parts"]["longest_stop_ms"], 1
        ),
        "answers": rows,
        "large_from_numbers": writing.LARGE,
        "rounds": num_rounds,
    }


def _medians(pairs: list[tuple[float, float]]) -> dict[str, float]:
    taken, stops = zip(*pairs, strict=True)
    return {
        "ms": round(statistics.median(taken), 3),
        "longest_stop_ms": round(statistics.median(stops), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="writing answers on and off the event loop")
    parser.add_argument("--rounds", type=int, default=15)
    measure.save("serialization", run(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
