"""Peak and final memory of a load, and the time until a first vector, each in a new process.

    python -m bench.loading [--model bge-m3] [--dtypes float32 bfloat16 int8] [--rounds 5]

Against sentence-transformers, which loads the same folder and embeds the same text. The file's
pages are in the page cache for both. Resident memory counts pages of mapped files that are in use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import measure
from bench.random_models import build

_STATUS = """
import json, sys, time
def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) / 1024
start = time.perf_counter()
"""
_OURS = """
import os
from engine.devices import prepare_environment
prepare_environment(os.environ)
from pathlib import Path
from bench.loaded import load_embedder
from engine.devices import CPU
from engine.fitting import LoadOptions
from engine.text.tokens import TextLimits
model = load_embedder("m", Path(sys.argv[1]), CPU, LoadOptions(dtype=sys.argv[2]))
model.run(model.tokenize(["w1 w2 w3"], TextLimits(64)))
assert model.dtype == sys.argv[2], model.dtype
from engine import memory
memory.release()
"""
_THEIRS = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": sys.argv[2]})
model.encode(["w1 w2 w3"])
"""
_END = """
print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": status("VmHWM"),
                  "resident_mb": status("VmRSS")}))
"""


def load_once(script: str, folder: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-c", _STATUS + script + _END, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(model: str, dtypes: list[str], num_rounds: int) -> dict[str, Any]:
    folder = build(model, Path("bench/models"))
    ways = {f"ours {dtype}": (_OURS, dtype) for dtype in dtypes}
    ways["sentence-transformers float32"] = (_THEIRS, "float32")
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, (script, dtype) in ways.items():
            taken[name].append(load_once(script, folder, dtype))
    found: dict[str, Any] = {}
    theirs = [each["seconds"] for each in taken["sentence-transformers float32"]]
    for name, each in taken.items():
        medians = {key: statistics.median(one[key] for one in each) for key in each[0]}
        own = [one["seconds"] for one in each]
        found[name] = {
            **{key: round(value, 2) for key, value in medians.items()},
            "peak_over_resident": round(medians["peak_mb"] / medians["resident_mb"], 2),
            "seconds_over_sentence_transformers": round(measure.median_ratio(own, theirs), 2),
        }
    return {**found, "model": model, "rounds": num_rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description="memory and time of a load")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    measure.save(f"loading-{asked.model}", run(asked.model, asked.dtypes, asked.rounds))


if __name__ == "__main__":
    main()
