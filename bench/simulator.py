"""The scheduler against synthetic clients on a virtual clock: waits, shares, fairness and its cost.

    python -m bench.simulator [--measure bge-small] [--scenarios NAME ...]

A wait is from a request's coming to its answer, or to the end of the run if none came. Times are
bge-m3's on two cores; with --measure there is a second run with a model timed here first.
`bench/simulated_worker.py` says what of the worker is mirrored. The same run prints the same on any
machine, but for the wall microseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.simulated_worker import BGE_M3, CostModel, SimulatedJob, SimulatedWorker, fair_ends

_PROMISED = (
    ("four bulk clients, eight interactive", "bulk", "rate_kept"),  # 0.4 or more
    ("one bulk client, eight interactive", "bulk", "rate_kept"),
    ("two equal jobs", "equal", "last_over_first_end"),  # 1.1 or less
    ("10,000 texts, 100 jobs of 100", "hundred", "worst_over_fair_end"),  # 1 and a batch or so
)
YIELDS = {"yields_on": 64, "yields_off": 0}  # settings.py's max_urgent_tokens
_TURN_S = (
    0.005  # from an answer to the next job: HTTP and tokenizer; the worker does not wait for it
)
_QUERY = 14  # tokens: 12 words and two special ones

Fill = Callable[[SimulatedWorker], None]
Figures = dict[str, Any]


def lengths(rng: random.Random, num_texts: int, mean_tokens: int = 100) -> list[int]:
    """As in bench/measure.py: lognormal (sigma 0.6), 4 to 500 tokens."""
    sigma = 0.6
    drawn = (mean_tokens * rng.lognormvariate(-(sigma**2) / 2, sigma) + 2 for _ in range(num_texts))
    return [min(500, max(4, round(length))) for length in drawn]


@dataclass(frozen=True, slots=True)
class Client:
    """A closed loop: its next job comes when it has its answer, has thought and has sent it."""

    name: str
    draw: Callable[[], Sequence[int]]
    think_s: Callable[[], float] = lambda: 0.0

    def __call__(self, worker: SimulatedWorker) -> None:
        job = SimulatedJob(self.name, self.draw(), then=self)
        worker.send(job, worker.now_s + self.think_s() + _TURN_S)


def bulk_clients(num_clients: int, num_texts: int = 32) -> Fill:
    """Closed loops of requests with that many texts of 100 tokens on average."""

    def client(number: int) -> Client:
        rng = random.Random(number)
        return Client(f"bulk {number}", lambda: lengths(rng, num_texts))

    return _all(client, num_clients)


def people(num_people: int, mean_think_s: float) -> Fill:
    """Closed loops of one-line queries; exponential thinking, or none."""

    def client(number: int) -> Client:
        rng = random.Random(1000 + number)
        think_s = (lambda: rng.expovariate(1 / mean_think_s)) if mean_think_s else (lambda: 0.0)
        return Client(f"person {number}", lambda: [_QUERY], think_s)

    return _all(client, num_people)


def _all(client: Callable[[int], Client], num_clients: int) -> Fill:
    def fill(worker: SimulatedWorker) -> None:
        for number in range(num_clients):
            client(number)(worker)

    return fill


def jobs(name: str, num_jobs: int, num_texts: int, mean_tokens: int = 100) -> Fill:
    """Equal jobs, all there at the start, each from a client of its own."""

    def fill(worker: SimulatedWorker) -> None:
        costs = lengths(random.Random(0), num_texts, mean_tokens)
        for number in range(num_jobs):
            worker.send(SimulatedJob(f"{name} {number}", costs), 0.0)

    return fill


def singles(num_jobs: int) -> Fill:
    """One-text jobs of 16 tokens on average, all there at the start."""

    def fill(worker: SimulatedWorker) -> None:
        for length in lengths(random.Random(0), num_jobs, mean_tokens=14):
            worker.send(SimulatedJob("single", [length]), 0.0)

    return fill


def bursts(num_queries: int, every_s: float, until_s: float) -> Fill:
    """That many one-line queries at the same moment, again and again."""

    def fill(worker: SimulatedWorker) -> None:
        for number in range(1, int(until_s / every_s)):
            for _ in range(num_queries):
                worker.send(SimulatedJob("burst", [_QUERY]), number * every_s)

    return fill


@dataclass(frozen=True, slots=True)
class Scenario:
    """Kinds of clients, each also run alone for comparison unless `compared` is false. Closed loops
    end at `until_s`; without them a scenario ends when all is done."""

    parts: dict[str, Fill]
    until_s: float = math.inf
    compared: bool = True


SCENARIOS: dict[str, Scenario] = {
    "four bulk clients, one person": Scenario(
        {"bulk": bulk_clients(4), "person": people(1, 3.0)}, 3600
    ),
    "four bulk clients, eight interactive": Scenario(
        {"bulk": bulk_clients(4), "person": people(8, 0.0)}, 3600
    ),
    "one bulk client, eight interactive": Scenario(
        {"bulk": bulk_clients(1, 1000), "person": people(8, 0.0)}, 3600
    ),
    "32 clients of one text, one person": Scenario(
        {"bulk": bulk_clients(32, 1), "person": people(1, 3.0)}, 3600
    ),
    "two equal jobs": Scenario({"equal": jobs("equal", 2, 1000)}),
    "10,000 texts, 100 jobs of 100": Scenario(
        {"long": jobs("long", 1, 10_000), "hundred": jobs("hundred", 100, 100)}
    ),
    "four bulk clients, bursts of 50": Scenario(
        {"bulk": bulk_clients(4), "burst": bursts(50, 60.0, 3600)}, 3600
    ),
    "1,000,000 jobs wait, one person": Scenario(
        {"single": singles(1_000_000), "person": people(1, 3.0)}, 20_000, compared=False
    ),
}


def simulate(
    scenario: Scenario, model: CostModel, max_urgent_tokens: int, only: str | None = None
) -> SimulatedWorker:
    """The worker after the run; of the scenario's kinds one alone, if named."""
    worker = SimulatedWorker(model, max_urgent_tokens=max_urgent_tokens)
    for kind, fill in scenario.parts.items():
        if only in (None, kind):
            fill(worker)
    worker.run(scenario.until_s)
    return worker


def outcome(scenario: Scenario, model: CostModel, max_urgent_tokens: int) -> Figures:
    """Everything that is printed of one run, by kind of client, and the scheduler's cost."""
    worker = simulate(scenario, model, max_urgent_tokens)
    kinds = {kind: _figures_of(worker, kind) for kind in scenario.parts}
    if scenario.compared and len(scenario.parts) > 1:
        for kind, figures in kinds.items():
            alone = _figures_of(simulate(scenario, model, max_urgent_tokens, kind), kind)
            figures["rate_kept"] = round(figures["tokens_per_s"] / alone["tokens_per_s"], 3)
            figures["alone_p50_s"] = alone["wait_s"]["p50"]
    if scenario.until_s == math.inf:
        for kind, worst in _over_fair_ends(worker).items():
            ends = [job.ended_s for job in worker.jobs if job.kind == kind]
            kinds[kind]["worst_over_fair_end"] = round(worst, 4)
            kinds[kind]["last_over_first_end"] = round(max(ends) / min(ends), 4)
    return {
        "kinds": kinds,
        "seconds": round(worker.now_s),
        "batches": worker.num_batches,
        "preemptions": worker.num_preemptions,
        "wall_us_per_taken_sequence": round(worker.take_s / worker.num_taken * 1e6, 2),
        "wall_us_per_added_job": round(worker.add_s / len(worker.jobs) * 1e6, 2),
    }


def _figures_of(worker: SimulatedWorker, kind: str) -> Figures:
    """Jain's index: 1 when all clients of the kind got the same, 1/n when one got everything."""
    waits = sorted(job.wait_s(worker.now_s) for job in worker.jobs if job.kind == kind)
    tokens = [n for client, n in worker.tokens_of.items() if client.partition(" ")[0] == kind]
    squares = sum(n * n for n in tokens) * len(tokens)
    return {
        "jobs": len(waits),
        "wait_s": {
            "p50": round(waits[len(waits) // 2], 2),
            "p95": round(waits[int(len(waits) * 0.95)], 2),
            "max": round(waits[-1], 2),
        },
        "tokens_share": round(sum(tokens) / worker.num_tokens, 3),
        "tokens_per_s": round(sum(tokens) / worker.now_s, 1),
        "jain": round(sum(tokens) ** 2 / squares, 4) if squares else 0.0,
    }


def _over_fair_ends(worker: SimulatedWorker) -> dict[str, float]:
    """By kind: the latest end as a multiple of processor sharing's, in tokens since coming."""
    came = [(job.came_at_token, sum(job.costs)) for job in worker.jobs]
    worst: dict[str, float] = {}
    for job, fair_end in zip(worker.jobs, fair_ends(came), strict=True):
        ratio = (job.ended_at_token - job.came_at_token) / (fair_end - job.came_at_token)
        worst[job.kind] = max(worst.get(job.kind, 0.0), ratio)
    return worst


def promises(found: dict[str, Figures]) -> Figures:
    """What the design promises, from the runs with preemptions."""
    told = {
        f"{name}: {kind}: {figure}": found[name]["yields_on"]["kinds"][kind][figure]
        for name, kind, figure in _PROMISED
        if name in found
    }
    for name, ways in found.items():
        if SCENARIOS[name].compared:
            on, off = (_tokens_per_s(ways[way]) for way in YIELDS)
            told[f"{name}: rate over that without preemptions"] = round(on / off, 3)
    return told


def _tokens_per_s(figures: Figures) -> float:
    return float(sum(kind["tokens_per_s"] for kind in figures["kinds"].values()))


def show(found: dict[str, Figures]) -> None:
    head = f"{'kind':8}{'jobs':>7}{'p50 s':>9}{'p95 s':>9}{'max s':>9}{'share':>7}{'kept':>7}"
    print(f"{'':12}{head}{'jain':>7}{'fair':>7}{'us':>6}")
    for name, ways in found.items():
        print(name)
        for way, figures in ways.items():
            for kind, of in figures["kinds"].items():
                wait = of["wait_s"]
                waits = "".join(f"{wait[key]:9.2f}" for key in ("p50", "p95", "max"))
                print(
                    f"{way:12}{kind:8}{of['jobs']:7}{waits}{of['tokens_share']:7.2f}"
                    f"{of.get('rate_kept', math.nan):7.2f}{of['jain']:7.3f}"
                    f"{of.get('worst_over_fair_end', math.nan):7.3f}"
                    f"{figures['wall_us_per_taken_sequence']:6.1f}"
                )


def run(model: CostModel, names: Sequence[str]) -> Figures:
    found = {
        name: {way: outcome(SCENARIOS[name], model, limit) for way, limit in YIELDS.items()}
        for name in names
    }
    print(f"{model.name}: {model.fixed_s:.4f} s a batch and {model.token_s * 1e3:.3f} ms a token")
    show(found)
    return {
        "promises": promises(found),
        "cost_model": dataclasses.asdict(model),
        "scenarios": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="the scheduler against synthetic clients")
    parser.add_argument("--measure", metavar="MODEL", help="time this shape's batches here first")
    parser.add_argument("--scenarios", nargs="+", choices=[*SCENARIOS], default=[*SCENARIOS])
    asked = parser.parse_args()
    from bench import batch_cost, measure  # torch: the tests of this file need none

    models = [BGE_M3, *([batch_cost.measured(asked.measure)] if asked.measure else [])]
    measure.save("simulator", {model.name: run(model, asked.scenarios) for model in models})


if __name__ == "__main__":
    main()
