"""Run perftest between pairs of nodes, no node twice at once, within a share of the budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from epdoctor.bench.fleet import Call, OperationFailed, WorkerLost
from epdoctor.bench.ladder import Bench
from epdoctor.bench.pairs import Pair, rounds
from epdoctor.bench.perftest_text import lacks_cuda
from epdoctor.bench.rails import Rail, Rails

BYTES = 65536
LATENCY_BYTES, LATENCY_TURNS = 8, 200
RUN_S = 0.2
"""How long a bandwidth test takes at the link's rate."""
LIMIT_S, SOFT_LIMIT_S = 8.0, 20.0
"""For one run with its start; Soft-RoCE is slow, and repeats for ever what is lost."""
NO_CUDA = "perftest there is built without CUDA"


@dataclass(frozen=True)
class Job:
    """One run: `a` writes to `b`."""

    tool: str
    """write_bw | write_lat"""
    a: str
    b: str
    rail_a: int
    rail_b: int


@dataclass(frozen=True)
class Answer:
    """What came of a job."""

    job: Job
    stdout: str = ""
    failed: str = ""
    """Why there is no result; the output says more."""
    output: str = ""
    missing: str = ""
    """What a node lacks: "ib_write_bw on vm2"."""
    timed_out_s: float = 0.0
    iterations: int = 0
    resent: int | None = None
    """Packets sent again by the writer."""
    unknown: str = ""
    """Nothing is known: a lost node, or a limit cut short by the budget."""


@dataclass
class Campaign:
    """All answers, and what was left out."""

    answers: list[Answer] = field(default_factory=list)
    left_out: int = 0
    """Jobs for which no time was left."""


def iterations(rail: Rail) -> int:
    """Writes of 64 KiB that take RUN_S at the link's rate."""
    if rail.software:
        return 50
    if not rail.rate_gbps:
        return 5000
    return int(min(200_000, max(200, rail.rate_gbps * 1e9 / 8 * RUN_S / BYTES)))


def ordered_rounds(names: Sequence[str], pairs: str) -> list[list[Pair]]:
    """Rounds of `pairs`; those of the ring first, so that each node has measured before time runs out."""
    every = rounds(names, pairs)
    ring = {frozenset(pair) for one in rounds(names, "1") for pair in one} if len(names) > 1 else set()
    first = [[pair for pair in one if frozenset(pair) in ring] for one in every]
    then = [[pair for pair in one if frozenset(pair) not in ring] for one in every]
    return [one for one in (*first, *then) if one]


def run_jobs(
    bench: Bench,
    rails: Rails,
    steps: Sequence[Sequence[Sequence[Job]]],
    *,
    share: float = 1.0,
    words: Mapping[tuple[str, int], Sequence[str]] | None = None,
    what: str = "",
) -> Campaign:
    """`steps`: each a round of rows; rows of a round run at once, jobs of a row one after the other.

    `words`: extra words for a (node, rail), as --use_cuda. Nothing starts for which no time is left."""
    campaign = Campaign()
    end = time.monotonic() + bench.left_s() * share
    longest = [0.0]

    def row(jobs: Sequence[Job]) -> list[Answer]:
        found = []
        for job in jobs:
            left = min(end - time.monotonic(), bench.left_s())
            if left < max(1.0, longest[0]):
                continue
            began = time.monotonic()
            found.append(_run(bench, rails, job, left, words or {}))
            longest[0] = max(longest[0], min(time.monotonic() - began, 3.0))
        return found

    most = max((len(one) for one in steps), default=1)
    with ThreadPoolExecutor(max_workers=max(1, most)) as pool:
        for at, one in enumerate(steps):
            bench.watch(f"{what}, round {at + 1} of {len(steps)}")
            planned = sum(map(len, one))
            answers = [answer for answers in pool.map(row, one) for answer in answers]
            campaign.answers += answers
            campaign.left_out += planned - len(answers)
    return campaign


def _run(
    bench: Bench, rails: Rails, job: Job, left_s: float, words: Mapping[tuple[str, int], Sequence[str]]
) -> Answer:
    sender, receiver = rails.of[job.a][job.rail_a], rails.of[job.b][job.rail_b]
    soft = sender.software or receiver.software
    full_s = SOFT_LIMIT_S if soft else LIMIT_S
    limit_s = min(full_s, left_s)
    count = LATENCY_TURNS if job.tool == "write_lat" else min(iterations(sender), iterations(receiver))

    def params(name: str, rail: Rail, host: str, port: int) -> dict[str, Any]:
        size = LATENCY_BYTES if job.tool == "write_lat" else BYTES
        argv = [
            f"ib_{job.tool}", "-d", rail.device, "-i", str(rail.port), "-s", str(size), "-n", str(count), "-F",
            *(["--report_gbits"] if job.tool == "write_bw" else []),
            *(["-x", str(rail.gid_index)] if rail.gid_index >= 0 else []),
            *words.get((name, rail.number), ()),
        ]  # fmt: skip
        return {
            "argv": argv, "host": host, "port": port, "device": rail.device, "ib_port": rail.port, "limit_s": limit_s,
        }  # fmt: skip

    calls: list[Call] = []
    try:
        server = bench.fleet[job.b].start("perftest", params(job.b, receiver, "", 0), timeout_s=limit_s + 2)
        calls.append(server)
        said = server.value(limit_s + 2)
        if "listening" not in said:
            return _ended(job, said, job.b, limit_s, full_s, count)
        host = bench.address_of(job.b)
        client = bench.fleet[job.a].start(
            "perftest", params(job.a, sender, host, int(said["listening"])), timeout_s=limit_s + 2
        )
        calls.append(client)
        return _ended(job, client.value(limit_s + 3), job.a, limit_s, full_s, count)
    except WorkerLost as lost:
        return Answer(job, unknown=str(lost))
    except OperationFailed as failed:
        return Answer(job, failed=str(failed), output=failed.stderr)
    except (TypeError, KeyError, ValueError):
        return Answer(job, unknown="an answer that makes no sense")
    finally:
        for call in calls:
            call.stop()


def _ended(job: Job, value: Any, node: str, limit_s: float, full_s: float, count: int) -> Answer:
    """From what one end said at its end."""
    if "missing" in value:
        return Answer(job, missing=f"{value['missing']} on {node}")
    text = f"{value.get('stdout', '')}\n{value.get('stderr', '')}"[:65536]
    if lacks_cuda(text):
        return Answer(job, missing=f"{NO_CUDA}: {node}")
    if value.get("rc") == "timeout":
        if limit_s < full_s:
            return Answer(job, unknown="cut short by the budget")
        return Answer(job, timed_out_s=limit_s, iterations=count)
    if value.get("rc") != 0:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        return Answer(
            job,
            failed=f"ib_{job.tool} on {node} ended with status {value.get('rc')}: {last[:200]}",
            output=text,
        )
    resent = value.get("resent")
    return Answer(
        job, stdout=str(value.get("stdout", "")), iterations=count,
        resent=resent if isinstance(resent, int) and not isinstance(resent, bool) else None,
    )  # fmt: skip


def same_rail_steps(names: Sequence[str], rails: Rails, pairs: str) -> list[list[list[Job]]]:
    """Each pair on each rail: bandwidth both ways and latency. One step is one rail of one round."""
    return [
        [
            [Job("write_bw", a, b, n, n), Job("write_bw", b, a, n, n), Job("write_lat", a, b, n, n)]
            for a, b in one
        ]
        for one in ordered_rounds(names, pairs)
        for n in range(rails.count)
    ]


def cross_rail_steps(names: Sequence[str], rails: Rails) -> list[list[list[Job]]]:
    """From each rail to each other one, between neighbours."""
    return [
        [[Job("write_bw", a, b, m, n)] for a, b in one]
        for one in (rounds(names, "1") if rails.count > 1 else [])
        for m in range(rails.count)
        for n in range(rails.count)
        if m != n
    ]
