"""Layer 2: verbs. On every rail each pair of nodes connects RC queue pairs and writes to each other, bytes compared.

Own exchange by ctypes (epdoctor/bench/ops/verbs_exchange.py), so that each failure has its step and errno, and a
dead peer ends it after seconds: ibv_rc_pingpong retries for ever on Soft-RoCE. Each queue pair first takes its own
port's active MTU, as NVSHMEM's IBGDA does (ibgda.cpp: qpc.mtu = port_attr->active_mtu); where that fails and the
MTUs differ, again the smaller of both, as NCCL does (net_ib: min of local and remote).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from epdoctor.bench.causes import named
from epdoctor.bench.ladder import Bench
from epdoctor.bench.pairs import rounds
from epdoctor.bench.rails import FULL_MESH, Rails, all_rails
from epdoctor.bench.results import LayerResult, Measurement, count_of
from epdoctor.bench.settle import and_more, settle
from epdoctor.bench.suspects import suspects_of_failed_kinds
from epdoctor.bench.verbs_run import End, Exchange, exchange
from epdoctor.model import Status
from epdoctor.provision.environment import NVSHMEM_BACKENDS

NUMBER, NAME, TITLE = "2", "verbs", "RDMA verbs: connect and write on every rail"
CHECKS = (
    "rdma.uverbs-accessible", "host.memlock-unlimited", "rdma.port-active", "rdma.roce-v2-gid-present",
    "rdma.phys-link-up", "drift.mtu",
)  # fmt: skip
CAUSES = {
    ("open", "EACCES"): "rdma-uverbs-permission-denied",
    ("open", "EPERM"): "rdma-uverbs-permission-denied",
    ("register memory", "ENOMEM"): "memlock-limit",
    ("create CQ", "ENOMEM"): "memlock-limit",
    ("create QP", "ENOMEM"): "memlock-limit",
    ("QP to RTR", "ETIMEDOUT"): "rdma-peer-unreachable",
    ("QP to RTR", "EHOSTUNREACH"): "rdma-peer-unreachable",
    ("QP to RTR", "ENETUNREACH"): "rdma-peer-unreachable",
    ("QP to RTR", "ENODATA"): "roce-wrong-gid-index",
    ("QP to RTR", "EINVAL"): "roce-wrong-gid-index",
    ("QP to RTR", "ENOSPC"): "roce-wrong-gid-index",
    ("link", ""): "rdma-port-down",
    ("gid", ""): "roce-no-ipv4-gid",
    ("no device", ""): "rdma-kernel-modules-not-loaded",
    ("write", "12"): "rdma-retry-timeout-fabric",
    ("mtu", ""): "rdma-mtu-mismatch",
}
"""(step, errno or status) -> cause. Sources: ibv_modify_qp(3), ibv_reg_mr(3), and each seen on Soft-RoCE."""
_CHECK_OF = {
    "open": "rdma.uverbs-accessible", "register memory": "host.memlock-unlimited",
    "create CQ": "host.memlock-unlimited", "create QP": "host.memlock-unlimited", "link": "rdma.phys-link-up",
    "gid": "rdma.roce-v2-gid-present", "QP to RTR": "rdma.roce-v2-gid-present", "no device": "rdma.hca-present",
    "mtu": "drift.mtu", "write": "network.ports-open",
}  # fmt: skip


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP)
    names = bench.alive
    rails = all_rails(bench.nodes, names)
    if not rails.of:
        result.reason = rails.not_known or "no RDMA device on any node"
        result.status = Status.UNKNOWN if rails.unknown else Status.SKIP
        return result
    if len(names) < 2:
        result.reason = "one node: nothing to connect to"
        return result
    steps: Counter[tuple[str, str]] = Counter()
    result.measurements += [
        Measurement("RDMA device", name, status=Status.UNKNOWN, detail=why)
        for name, why in rails.unknown.items()
    ]
    for name, why in rails.without.items():
        others = max(len(found) for found in rails.of.values())
        steps["no device", ""] += 1
        result.measurements.append(
            Measurement(
                "RDMA device", name, status=Status.FAIL, detail=f"{why} there; other nodes have {others}"
            )
        )
    if len({len(found) for found in rails.of.values()}) > 1:
        counts = ", ".join(f"{name} {len(found)}" for name, found in rails.of.items())
        result.notes.append(f"rails differ in number ({counts}); tried: the first {rails.count}")
    bench.watch(f"verbs on {rails.count} rail{'s' if rails.count != 1 else ''} of {len(rails.of)} nodes")
    ends = _ends(rails, bench.pairs)
    found = exchange(bench, rails, ends)
    _again(bench, result, rails, found, ends)
    _setups(result, rails, found, steps)
    _writes(bench, result, rails, found, ends, steps)
    _settled(result, steps)
    return result


def _again(
    bench: Bench, result: LayerResult, rails: Rails, found: Exchange, ends: list[tuple[End, End]]
) -> None:
    """What failed is tried once more: a lost ARP answer makes one connection fail, a broken rail fails twice."""
    bad = [
        (a, b)
        for a, b in ends
        if found.ready(a, b) and (found.failed(a, b) or found.failed(b, a)) is not None
    ]
    if not bad or bench.left_s() < 2:
        return
    second = exchange(bench, rails, bad)
    better = [
        (a, b)
        for a, b in bad
        if second.ready(a, b) and second.failed(a, b) is None and second.failed(b, a) is None
    ]
    for one, other in _both(better):
        found.writes[one, other] = second.writes[one, other]
        found.arrived[one, other] = True
    if better:
        result.notes.append(
            f"{count_of(len(better), 'connection')} worked only at the second try (first: "
            f"{better[0][0].node} and {better[0][1].node}): packets may be lost"
        )


def _ends(rails: Rails, pairs: str) -> list[tuple[End, End]]:
    """Same-rail pairs of all nodes, then each rail with each other one between neighbours."""
    numbers = range(rails.count)
    names = list(rails.of)
    same = [(End(a, n), End(b, n)) for one in rounds(names, pairs) for a, b in one for n in numbers]
    crossed = [
        (End(a, m), End(b, n))
        for one in (rounds(names, "1") if rails.count > 1 else [])
        for a, b in one
        for m in numbers
        for n in numbers
        if m != n
    ]
    return same + crossed


def _setups(result: LayerResult, rails: Rails, found: Exchange, steps: Counter[tuple[str, str]]) -> None:
    """One measurement for each rail of each node: opened, memory registered, queue pairs made."""
    for name, own in rails.of.items():
        for rail in own[: rails.count]:
            one = Measurement("set-up", name, rail=rail.device)
            if name in found.missing:
                one = replace(one, status=Status.UNKNOWN, detail=found.missing[name])
            elif rail.problem:
                steps[rail.step, ""] += 1
                one = replace(one, status=Status.FAIL, detail=rail.problem)
            elif (failed := found.setups.get(End(name, rail.number))) is not None and failed.step:
                steps[failed.step, failed.code] += 1
                one = replace(one, status=Status.FAIL, detail=str(failed))
            elif failed is None:
                one = replace(one, status=Status.UNKNOWN, detail=found.lost.get(name, "no answer"))
            result.measurements.append(one)


def _writes(
    bench: Bench,
    result: LayerResult,
    rails: Rails,
    found: Exchange,
    ends: list[tuple[End, End]],
    steps: Counter[tuple[str, str]],
) -> None:
    retry = [
        (a, b)
        for a, b in ends
        if found.ready(a, b)
        and found.mtus[a] != found.mtus[b]
        and (found.failed(a, b) is not None or found.failed(b, a) is not None)
    ]
    smaller = exchange(bench, rails, retry, smaller_mtu=True) if retry else None
    cross_broken = 0
    cross = 0
    for a, b in ends:
        if not found.ready(a, b):
            continue  # the set-up of one end says why
        for one, other in ((a, b), (b, a)):
            label = rails.label(one.rail, one.node, other.node)
            what = "write"
            if one.rail != other.rail:
                what, cross = "write across rails", cross + 1
                label = f"{rails.label(one.rail, one.node)} to {rails.label(other.rail, other.node)}"
            measured = Measurement(what, one.node, other.node, label)
            failed = found.failed(one, other)
            if failed is None:
                result.measurements.append(measured)
                continue
            detail, code = str(failed), (failed.step, failed.code)
            if failed.step == "QP to RTR":
                rail = rails.of[one.node][one.rail]
                if rail.gid_from and "(at " not in detail:
                    detail += f"; GID index {rail.gid_index} ({rail.gid_from})"
            if smaller is not None and (one, other) in _both(retry) and smaller.failed(one, other) is None:
                code = ("mtu", "")
                detail = (
                    f"fails with each port's own MTU, {found.mtus[one]} here and {found.mtus[other]} there, as NVSHMEM "
                    f"connects; passes with {min(found.mtus[one], found.mtus[other])}"
                )
                if bench.goal.backend and bench.goal.backend not in NVSHMEM_BACKENDS:
                    result.notes.append(f"{label} of {one.node} and {other.node}: {detail}")
                    result.measurements.append(measured)
                    continue
            status = Status.UNKNOWN if failed.step == "lost" else Status.FAIL
            if what != "write" and bench.goal.backend not in FULL_MESH:
                cross_broken += 1
                continue
            if status is Status.FAIL:
                steps[code] += 1
            result.measurements.append(replace(measured, status=status, detail=detail))
    if cross_broken:
        result.notes.append(
            f"rail-only fabric: {cross_broken} of {cross} writes from one rail to another do not arrive; "
            f"{' and '.join(FULL_MESH)} need them"
        )


def _both(ends: list[tuple[End, End]]) -> set[tuple[End, End]]:
    return {(a, b) for a, b in ends} | {(b, a) for a, b in ends}


def _settled(result: LayerResult, steps: Counter[tuple[str, str]]) -> None:
    settle(
        result, broken=_broken, summary=lambda: _summary(result), suspected=suspects_of_failed_kinds
    )  # fmt: skip
    if result.failures:
        result.causes = named(_causes(steps))
        common = [step for (step, _), _ in steps.most_common()]
        result.checks = tuple(dict.fromkeys(_CHECK_OF[step] for step in common if step in _CHECK_OF))
        if result.causes:
            result.next = f"epdoctor explain {result.causes[0][0]}"


def _broken(failures: list[Measurement]) -> str:
    first = failures[0]
    where = f"{first.rail} from {first.a} to {first.b}" if first.b else f"{first.rail or 'RDMA'} of {first.a}"
    return f"{where}: {first.detail}{and_more(failures)}"


def _summary(result: LayerResult) -> str:
    writes = [one for one in result.measurements if one.what == "write"]
    pairs = {frozenset((one.a, one.b)) for one in writes}
    rails = {one.rail for one in writes}
    across = sum(one.what == "write across rails" for one in result.measurements)
    return f"{count_of(len(pairs), 'pair')} both ways on {', '.join(sorted(rails)[:8])}" + (
        f", {across} across rails" if across else ""
    )


def _causes(steps: Counter[tuple[str, str]]) -> list[str]:
    return [CAUSES[step] for step, _ in steps.most_common() if step in CAUSES]
