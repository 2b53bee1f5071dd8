"""One engine in a process of its own: answers `bulk`, `single` and `vectors` on standard input.

    python -m bench.runner ENGINE MODEL_FOLDER WORK_FOLDER

Started by bench/compare.py. Ours gets token ids as its tokenizer gives them; so do ONNX Runtime and
OpenVINO, in padded batches sorted by length, of the size that was fastest in a first round.
sentence-transformers gets texts. All pool and normalise.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Ids = Sequence[Sequence[int]]

_BATCH_TOKENS = 2048  # ours, as the server's default
_PADDED_SIZES = (4, 8, 16, 32)
_CALIBRATION_TEXTS = 32


class Padded:
    """`run` gets ids and mask int64 `[n, longest]` and gives `[n, dim]`."""

    def __init__(self, run: Callable[[Rows, Rows], Rows]) -> None:
        self._run = run
        self._size = 0

    def __call__(self, ids: Ids) -> Rows:
        if len(ids) > 1 and not self._size:
            self._embed(ids, _PADDED_SIZES[0])  # warm
            self._size = min(_PADDED_SIZES, key=lambda size: self._seconds(ids, size))
        return self._embed(ids, self._size or 1)

    def _seconds(self, ids: Ids, size: int) -> float:
        start = time.perf_counter()
        self._embed(ids, size)
        return time.perf_counter() - start

    def _embed(self, ids: Ids, size: int) -> Rows:
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rows: list[Any] = [None] * len(ids)
        for first in range(0, len(ids), size):
            batch = order[first : first + size]
            for i, row in zip(batch, self._run(*padded([ids[i] for i in batch])), strict=True):
                rows[i] = row
        return np.stack(rows)


def padded(ids: Ids) -> tuple[Any, Any]:
    longest = max(map(len, ids))
    rows, mask = (np.zeros((len(ids), longest), dtype=np.int64) for _ in range(2))
    for i, row in enumerate(ids):
        rows[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return rows, mask


def ours(dtype: str, folder: Path) -> Callable[[Ids], Rows]:
    from batcher.scheduler import Scheduler
    from bench.loaded import load_embedder
    from engine.devices import Device
    from engine.fitting import LoadOptions
    from engine.outputs import dense_rows
    from engine.text.tokens import TextLimits
    from serving import embedding

    device = Device("cpu", "cpu", "float32", "unpadded")
    model = load_embedder("m", folder, device, LoadOptions(dtype=dtype))  # type: ignore[arg-type]
    print(f"ours: {model.describe()}", file=sys.stderr)

    def embed(ids: Ids) -> Rows:
        tokens = model.tokens_of(ids, TextLimits(model.max_length))
        scheduler = Scheduler()
        scheduler.add("job", "m", model.costs(tokens), [len(each.ids) for each in tokens])
        rows = np.empty((len(ids), model.dim), dtype=np.float32)
        while batch := scheduler.take(_BATCH_TOKENS):
            members = [index for _, index in batch.members]
            rows[members] = dense_rows(model.run([tokens[i] for i in members]))
        return embedding.finish(rows)

    return embed


def sentence_transformers(dtype: str, folder: Path, texts: list[str]) -> Callable[[Ids], Rows]:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    torch.set_grad_enabled(False)

    def embed(ids: Ids) -> Rows:
        chosen = texts[:1] if len(ids) == 1 else texts[1:]
        out = model.encode(chosen, normalize_embeddings=True, convert_to_tensor=True)
        rows: Rows = out.float().numpy()
        return rows

    return embed


def stock(folder: Path) -> Any:
    """transformers' model with pooling and L2, for exports; eager attention exports everywhere."""
    import torch
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    takes_last = model.config.model_type == "qwen3"

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
            if takes_last:
                last = attention_mask.sum(1) - 1
                pooled = states[torch.arange(states.shape[0]), last]
            else:
                pooled = states[:, 0]
            return torch.nn.functional.normalize(pooled, dim=1)

    ids = torch.randint(10, 100, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    return Pooled(), (ids, mask)


def onnx_runtime(dtype: str, folder: Path, work: Path) -> Callable[[Ids], Rows]:
    import onnxruntime

    path, narrow = work / "model.onnx", work / "model-int8.onnx"
    if not path.exists():
        import torch

        module, inputs = stock(folder)
        batch, length = torch.export.Dim("batch", max=256), torch.export.Dim("length", max=8192)
        shapes = ({0: batch, 1: length},) * 2
        torch.onnx.export(
            module,
            inputs,
            str(path),
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["out"],
        )
    if dtype == "int8" and not narrow.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(path, narrow, weight_type=QuantType.QInt8, per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    chosen = str(narrow if dtype == "int8" else path)
    session = onnxruntime.InferenceSession(chosen, options, providers=["CPUExecutionProvider"])
    return Padded(
        lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    )


def openvino(dtype: str, folder: Path, work: Path, ids: Ids) -> Callable[[Ids], Rows]:
    import openvino as ov

    path, narrow = work / "model.xml", work / "model-int8.xml"
    if not path.exists():
        module, inputs = stock(folder)
        ov.save_model(ov.convert_model(module, example_input=inputs), path, compress_to_fp16=False)
    core = ov.Core()
    if dtype == "int8" and not narrow.exists():
        import nncf

        batches = [padded([each]) for each in ids[1 : 1 + _CALIBRATION_TEXTS]]
        quantized = nncf.quantize(
            core.read_model(path), nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER
        )
        ov.save_model(quantized, narrow, compress_to_fp16=False)
    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
    if dtype == "float32":
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(str(narrow if dtype == "int8" else path), "CPU", hints)
    request = compiled.create_infer_request()
    return Padded(lambda rows, mask: request.infer([rows, mask])[0].copy())


def open_engine(name: str, folder: Path, work: Path) -> Callable[[Ids], Rows]:
    data = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    kind, _, dtype = name.partition(":")
    if kind == "ours":
        return ours(dtype, folder)
    if kind == "sentence-transformers":
        return sentence_transformers(dtype, folder, data["texts"])
    if kind == "onnxruntime":
        return onnx_runtime(dtype, folder, work)
    return openvino(dtype, folder, work, data["ids"])


def main() -> None:
    name, folder, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    from engine.devices import prepare_environment

    if name.startswith("ours"):
        prepare_environment(os.environ)  # as the server does, before torch is imported
    ids = json.loads((work / "texts.json").read_text(encoding="utf-8"))["ids"]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    embed = open_engine(name, folder, work)
    single, bulk = ids[:1], ids[1:]
    for command in sys.stdin:
        start = time.perf_counter()
        if command.strip() == "vectors":
            np.save(work / f"{name.replace(':', '-')}.npy", embed(bulk))
        elif command.strip() == "bulk":
            embed(bulk)
        else:
            for _ in range(20):
                embed(single)
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


if __name__ == "__main__":
    main()
