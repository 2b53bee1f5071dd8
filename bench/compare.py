"""Ours against other engines on the same weights and texts, each in a process of its own, in turn.

    python -m bench.compare [--model bge-small] [--rounds 5] [--texts 200] [--isa AVX512_CORE_VNNI]

Makes the other engines' environment once (.peers, not in the repository). Bulk: texts
lognormal around 100 tokens, each engine at its best batching (bench/runner.py). Single: one text of
16 tokens. Ratios are ours over a peer's within the same round, the median and the spread over the
rounds; above 1 ours is faster. sentence-transformers tokenizes as well and keeps its own batches.
`--isa` lets oneDNN behave as on a weaker processor: such figures are kept as emulated, and without
ONNX Runtime, whose kernels do not listen to it. Figures of other classes in the kept file stay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure
from bench.random_models import build

_PEERS = Path(".peers")
# All that the peers need and our own development packages do not bring, for --no-deps.
_PACKAGES = """
    onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 openvino==2026.4.1
    openvino-telemetry==2025.2.0 nncf==3.4.0 about-time==4.2.2 alive-progress==3.3.0 autograd==1.9.1
    cffi==2.1.1 cma==4.5.0 flatbuffers==25.12.19 grapheme==0.6.0 graphemeu==0.11.0
    jsonschema==4.26.0 jsonschema-specifications==2025.9.1 ml_dtypes==0.6.0 moocore==0.3.2
    natsort==8.4.0 ninja==1.13.2
    protobuf==7.36.2 pycparser==3.12 pydot==4.0.1 pymoo==0.6.2 pyparsing==3.3.3 pytz==2026.6
    referencing==0.37.0 rpds-py==2026.9.1 six==1.17.0 tabulate==0.10.0
"""
_ENGINES = (
    "ours:float32",
    "ours:bfloat16",
    "ours:int8",
    "sentence-transformers:float32",
    "sentence-transformers:bfloat16",
    "onnxruntime:float32",
    "onnxruntime:int8",
    "openvino:default",
    "openvino:float32",
    "openvino:int8",
)
_SINGLES = 20  # texts in one measurement of the latency
_NUM_SINGLE_TOKENS = 16
_LEAST_COSINE = 0.98  # of a text's vector with the first engine's


class Engine:
    """A runner's process."""

    def __init__(self, name: str, folder: Path, work: Path) -> None:
        self.name = name
        command = [str(_python()), "-m", "bench.runner", name, str(folder), str(work)]
        log = (work / f"{name.replace(':', '-')}.log").open("w", encoding="utf-8")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)

    def ask(self, command: str) -> float:
        """Seconds. Raises RuntimeError when the engine has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{command}\n")
            stdin.flush()
            return float(json.loads(stdout.readline()))
        except (ValueError, OSError) as error:
            raise RuntimeError(f"{self.name} ended; see its log") from error

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _python() -> Path:
    """The peers' environment, or one that has them already."""
    return Path(os.environ.get("PEERS_PYTHON", _PEERS / "env" / "bin" / "python"))


def make_environment() -> None:
    """The peers beside our own packages, so that nothing is fetched twice."""
    done = _PEERS / "complete"
    if done.exists() or "PEERS_PYTHON" in os.environ:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(_PEERS / "env")], check=True)
    (site,) = (_PEERS / "env" / "lib").glob("python*/site-packages")
    own = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "shared.pth").write_text(f"{own}\n", encoding="utf-8")
    pip = [str(_python()), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, *_PACKAGES.split()], check=True)
    done.touch()


def processor_class(isa: str) -> str:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if isa:
        return f"emulated {isa}"
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-VNNI with bfloat16")):
        if flag in flags:
            return name
    return "AVX512-VNNI" if "avx512_vnni" in flags else "AVX2"


def ratios(own: list[float], peer: list[float]) -> dict[str, float]:
    """How many times as fast ours is: the median over the rounds, the least and the most."""
    each = [p / o for o, p in zip(own, peer, strict=True)]
    found = (statistics.median(each), min(each), max(each))
    return dict(zip(("median", "least", "most"), (round(x, 3) for x in found), strict=True))


def run(asked: argparse.Namespace) -> dict[str, Any]:
    make_environment()
    folder = build(asked.model, Path("bench/models"))
    stored = (folder / "model.safetensors").stat()
    work = _PEERS / f"{asked.model}-{stored.st_mtime_ns}"  # exports are those of these weights
    work.mkdir(parents=True, exist_ok=True)
    num_tokens = _write_texts(folder, work, asked.texts)
    engines: list[Engine] = []
    taken: dict[str, dict[str, list[float]]] = {}
    cosines: dict[str, float] = {}
    absent: list[str] = []
    try:
        for name in asked.engines:
            engine = Engine(name, folder, work)
            try:
                for command in ("vectors", "single"):
                    engine.ask(command)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                engine.stop()
                absent.append(name)
                continue
            engines.append(engine)
            taken[name] = {"bulk": [], "single": []}
            cosines[name] = _least_cosine(work, engines[0].name, name)
            if cosines[name] < _LEAST_COSINE:
                raise ValueError(f"{name} computes something else: a cosine of {cosines[name]}")
            print(f"{name}: lowest cosine with {engines[0].name} {cosines[name]:.5f}", flush=True)
        for _ in range(asked.rounds):
            for engine in engines:
                engine.ask("single")  # caches are warm again, as are its threads
                taken[engine.name]["single"].append(engine.ask("single") / _SINGLES)
                taken[engine.name]["bulk"].append(engine.ask("bulk"))
    finally:
        for engine in engines:
            engine.stop()
    return {
        "tokens_per_s": {
            k: round(num_tokens / statistics.median(v["bulk"])) for k, v in taken.items()
        },
        "ms_of_16_tokens": {
            name: round(1e3 * statistics.median(each["single"]), 2) for name, each in taken.items()
        },
        "lowest_cosine": {name: round(cosine, 5) for name, cosine in cosines.items()},
        "ours_over_peer": {
            f"{own} / {peer}": {
                what: ratios(taken[own][what], taken[peer][what]) for what in ("bulk", "single")
            }
            for own in taken
            for peer in taken
            if own.startswith("ours") and peer != own
        },
        "did_not_run": absent,
        "rounds": asked.rounds,
        "texts": asked.texts,
        "tokens": num_tokens,
        "machine": measure.machine(),
    }


def _write_texts(folder: Path, work: Path, num_texts: int) -> int:
    """The single text first. Returns the tokens of the others."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    single = " ".join(f"w{i}" for i in range(1, _NUM_SINGLE_TOKENS - 1))
    texts = [single, *measure.lognormal_texts(num_texts)]
    ids = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    data = {"texts": texts, "ids": ids}
    (work / "texts.json").write_text(json.dumps(data), encoding="utf-8")
    return sum(len(row) for row in ids[1:])


def _least_cosine(work: Path, first: str, name: str) -> float:
    one, other = (np.load(work / f"{each.replace(':', '-')}.npy") for each in (first, name))
    return float((one * other).sum(axis=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description="ours against other engines")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--engines", nargs="+", default=_ENGINES)
    parser.add_argument("--isa", default="", help="what oneDNN may use at most")
    asked = parser.parse_args()
    asked.isa = asked.isa or os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    if asked.isa:
        asked.engines = [name for name in asked.engines if "onnxruntime" not in name]
        os.environ["ONEDNN_MAX_CPU_ISA"] = asked.isa
    result = run(asked)
    name = f"compare-{asked.model}"
    kept = measure.RESULTS / f"{name}.json"
    before = json.loads(kept.read_text(encoding="utf-8"))["classes"] if kept.exists() else {}
    measure.save(name, {"classes": {**before, processor_class(asked.isa): result}})


if __name__ == "__main__":
    main()
