"""What the scheduler promises to clients, on a virtual clock: the same on every machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from batcher import jobs as jobs_module
from batcher import worker as worker_module
from batcher.jobs import Job
from batcher.worker import Worker
from bench.simulated_worker import BGE_M3, CostModel, SimulatedJob, SimulatedWorker, fair_ends
from bench.simulator import Scenario, bulk_clients, jobs, outcome, people, simulate

URGENT = 64
BGE_SMALL = CostModel("bge-small", 0.004, 0.00037, 36)  # about, on two cores
PATIENCE_S = 30.0


@pytest.mark.parametrize("model", [BGE_M3, BGE_SMALL], ids=lambda model: model.name)
@pytest.mark.parametrize("num_bulk", [1, 4])
def test_eight_interactive_clients_leave_bulk_two_fifths_of_its_rate(
    model: CostModel, num_bulk: int
) -> None:
    """Each sends its next query the moment it has its answer."""
    until_s = model.seconds(1024) * 200
    scenario = Scenario({"bulk": bulk_clients(num_bulk), "person": people(8, 0.0)}, until_s)
    kinds = outcome(scenario, model, URGENT)["kinds"]
    assert kinds["bulk"]["rate_kept"] >= 0.4
    assert kinds["person"]["wait_s"]["p95"] < model.seconds(1024), "none waits for a long batch"


@pytest.mark.parametrize("model", [BGE_M3, BGE_SMALL], ids=lambda model: model.name)
def test_texts_that_are_much_alike_lose_little_to_the_short_ones_among_them(
    model: CostModel,
) -> None:
    """32 clients of one text each; a person's query still comes in between."""
    until_s = model.seconds(1024) * 100
    clients = Scenario({"bulk": bulk_clients(32, 1)}, until_s)
    on, off = (simulate(clients, model, limit).num_tokens for limit in (URGENT, 0))
    assert on >= 0.95 * off
    person = {"person": people(1, until_s / 100)}
    with_person = Scenario({"bulk": bulk_clients(32, 1), **person}, until_s)
    waits = outcome(with_person, model, URGENT)["kinds"]["person"]["wait_s"]
    assert waits["p95"] < model.seconds(1024) / 4


@pytest.mark.parametrize("max_urgent_tokens", [0, URGENT])
def test_two_equal_jobs_end_within_a_tenth_of_each_other(max_urgent_tokens: int) -> None:
    scenario = Scenario({"equal": jobs("equal", 2, 200)})
    kinds = outcome(scenario, BGE_M3, max_urgent_tokens)["kinds"]
    assert kinds["equal"]["last_over_first_end"] <= 1.1


@pytest.mark.parametrize("max_urgent_tokens", [0, URGENT])
def test_a_long_job_delays_a_hundred_others_by_no_more_than_its_share(
    max_urgent_tokens: int,
) -> None:
    """10,000 texts beside 100 jobs of 100: fair is a 101st part for each while it waits."""
    scenario = Scenario({"long": jobs("long", 1, 10_000), "hundred": jobs("hundred", 100, 100)})
    kinds = outcome(scenario, BGE_M3, max_urgent_tokens)["kinds"]
    assert kinds["hundred"]["worst_over_fair_end"] <= 1.01
    alone = simulate(scenario, BGE_M3, max_urgent_tokens, only="hundred")
    assert kinds["hundred"]["wait_s"]["max"] <= alone.now_s * (101 / 100) * 1.01


def test_jobs_that_come_later_get_their_share_too() -> None:
    """Ten jobs of 100 texts, each 20 s after the one before, beside one of 5,000."""
    worker = SimulatedWorker(BGE_M3)
    jobs("long", 1, 5000)(worker)
    for number in range(10):
        worker.send(SimulatedJob(f"late {number}", [100] * 100), 20.0 * number)
    worker.run()
    fair = fair_ends([(job.came_at_token, sum(job.costs)) for job in worker.jobs])
    for job, fair_end in zip(worker.jobs, fair, strict=True):
        assert job.ended_at_token <= fair_end + 2 * 1024 + 10 * 100, job.client


@pytest.mark.parametrize(
    ("came", "ends"),
    [
        pytest.param([(0, 10)], [10], id="one"),
        pytest.param([(0, 10), (0, 10)], [20, 20], id="two equal ones"),
        pytest.param([(0, 10), (0, 30)], [20, 40], id="the longer one has the rest for itself"),
        pytest.param([(10, 10), (0, 30)], [30, 40], id="one comes later"),
        pytest.param([(0, 10), (10, 5)], [10, 15], id="one after the other"),
    ],
)
def test_the_fair_ends_are_those_of_processor_sharing(
    came: list[tuple[int, int]], ends: list[float]
) -> None:
    assert fair_ends(came) == ends


def test_the_simulated_worker_runs_the_batches_that_the_real_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real worker with its clock replaced, the same jobs coming at the same moments."""
    model = CostModel("tiny", 0.2, 0.01, 12)
    coming = [(0.0, [100] * 30), (0.0, [90] * 30)]
    coming += [(0.37 * number, [7 + number % 9]) for number in range(1, 90)]
    simulated = SimulatedWorker(model, 512, URGENT)
    simulated.batches = []
    for number, (at_s, costs) in enumerate(coming):
        simulated.send(SimulatedJob(f"job {number}", costs), at_s)
    simulated.run()
    assert simulated.num_preemptions > 10, "or there is little to compare"
    expected = [
        [(int(job.client.split()[1]), index) for job, index in batch.members]
        for batch in simulated.batches
    ]
    assert real_batches(model, coming, monkeypatch) == expected


def real_batches(
    model: CostModel, coming: list[tuple[float, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> list[list[tuple[int, int]]]:
    """Payloads are (job, index). Time passes, and jobs come, only while a batch runs."""
    now_s = 0.0
    waiting = list(enumerate(coming))
    batches: list[list[tuple[int, int]]] = []
    may_start, all_ended = threading.Event(), threading.Event()
    num_open = len(coming)

    def let_in() -> None:
        while waiting and waiting[0][1][0] <= now_s:
            number, (_, costs) = waiting.pop(0)
            job = Job("model", [(number, index) for index in range(len(costs))], costs)
            job.on_end = one_ended
            worker.submit(job)

    def one_ended() -> None:
        nonlocal num_open
        num_open -= 1
        if not num_open:
            all_ended.set()

    def run_batch(
        group: object, payloads: list[Any], preempt: Callable[[], None] | None
    ) -> list[Any]:
        nonlocal now_s
        batches.append(payloads)
        part_s = model.seconds(sum(coming[number][1][index] for number, index in payloads))
        part_s /= model.num_parts
        for _ in range(model.num_parts):
            let_in()
            if preempt is not None:
                preempt()
            now_s += part_s
        let_in()
        return payloads

    def wait_for_the_first() -> None:
        assert may_start.wait(PATIENCE_S)

    clock = SimpleNamespace(perf_counter=lambda: now_s)
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(jobs_module, "time", clock)
    worker = Worker(run_batch, 512, max_urgent_tokens=URGENT, on_start=wait_for_the_first)
    let_in()
    may_start.set()
    assert all_ended.wait(PATIENCE_S)
    assert worker.stop(PATIENCE_S)
    return batches
