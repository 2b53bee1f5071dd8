"""Draws docs/figures.svg from the kept results: throughput, and a query beside a bulk import.

Standard library only. The picture brings its own background and a rule for dark pages, so it is
readable whichever of the two a viewer applies. Must not measure anything: every number is read from
bench/results. Run `python -m bench.chart` after a result has changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_CLASS = "AVX512-VNNI with bfloat16"
_ENGINES = {
    "ours:bfloat16": "this server, default here",
    "openvino:default": "OpenVINO, default",
    "ours:float32": "this server, float32",
    "openvino:float32": "OpenVINO, float32",
    "onnxruntime:float32": "ONNX Runtime, float32",
    "ours:int8": "this server, int8",
    "onnxruntime:int8": "ONNX Runtime, int8",
}
TARGET = Path(__file__).parents[1] / "docs" / "figures.svg"

_WIDTH, _LABELS, _BAR, _ROW, _GAP = 760, 236, 18, 26, 26
_MAX_BAR = _WIDTH - _LABELS - 110  # room for the number behind the longest bar
_STYLE = """
    text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
    .title { font-weight: 600; } .note { font-size: 12px; fill: #59636e; }
    .label { text-anchor: end; } .ours { fill: #0969da; } .other { fill: #afb8c1; }
    .page { fill: #ffffff; stroke: #d1d9e0; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .note { fill: #9198a1; }
      .ours { fill: #4493f8; } .other { fill: #59636e; }
      .page { fill: #0d1117; stroke: #3d444d; }
    }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One value; ours are coloured."""

    label: str
    value: float
    text: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars on one scale below a title."""

    title: str
    note: str
    bars: tuple[Bar, ...]


def main() -> None:
    """Writes the picture."""
    TARGET.write_text(draw(panels()), encoding="utf-8")
    print(f"wrote {TARGET}")


def panels() -> tuple[Panel, ...]:
    """What the picture shows, in order."""
    return _throughput(_read("compare-bge-m3")), _latency(_read("interactive-bge-m3"))


def draw(panels: tuple[Panel, ...]) -> str:
    """The SVG's text."""
    top, parts = 30, []
    for panel in panels:
        parts += _draw_panel(panel, top)
        top += _height(panel)
    height = top - 22
    said = "; ".join(f"{bar.label}: {bar.text}" for panel in panels for bar in panel.bars)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_escape(said)}">'
    )
    page = (
        f'  <rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>'
    )
    return "\n".join([head, f"  <style>{_STYLE}  </style>", page, *parts, "</svg>", ""])


def _throughput(result: dict[str, Any]) -> Panel:
    found = result["classes"][_CLASS]
    rate = found["tokens_per_s"]
    return Panel(
        "Throughput, tokens/s (longer is better)",
        f"bge-m3 shape, {found['texts']} texts of about 100 tokens, {_machine(found)}",
        tuple(_bar(label, rate[key], is_ours="ours" in key) for key, label in _ENGINES.items()),
    )


def _latency(result: dict[str, Any]) -> Panel:
    # `yield_on` was the name of these runs when the file was kept.
    on = result.get("preemption_on") or result["yield_on"]
    off = result.get("preemption_off") or result["yield_off"]
    return Panel(
        "A query's p95 beside a bulk import, ms (shorter is better)",
        f"bge-m3 shape, {result['bulk_clients']} bulk clients that never stop, {_machine(result)}",
        (
            _bar("idle server", on["idle_ms"]["p95"], is_ours=True),
            _bar("beside bulk, preemption on", on["beside_bulk_ms"]["p95"], is_ours=True),
            _bar("beside bulk, preemption off", off["beside_bulk_ms"]["p95"]),
        ),
    )


def _bar(label: str, value: float, *, is_ours: bool = False) -> Bar:
    return Bar(label, value, f"{value:,.0f}", is_ours)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['cpus']} {machine['capability']} cores"


def _height(panel: Panel) -> int:
    return 46 + _ROW * len(panel.bars) + _GAP


def _draw_panel(panel: Panel, top: int) -> list[str]:
    longest = max(bar.value for bar in panel.bars)
    lines = [
        f'  <text class="title" x="16" y="{top}">{_escape(panel.title)}</text>',
        f'  <text class="note" x="16" y="{top + 19}">{_escape(panel.note)}</text>',
    ]
    for row, bar in enumerate(panel.bars):
        y = top + 34 + row * _ROW
        length = max(3, round(_MAX_BAR * bar.value / longest))
        kind = "ours" if bar.is_ours else "other"
        lines += [
            f'  <text class="label" x="{_LABELS - 12}" y="{y + 14}">{_escape(bar.label)}</text>',
            f'  <rect class="{kind}" x="{_LABELS}" y="{y}" width="{length}" height="{_BAR}" '
            'rx="3"/>',
            f'  <text x="{_LABELS + length + 8}" y="{y + 14}">{bar.text}</text>',
        ]
    return lines


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


if __name__ == "__main__":
    main()
