"""Layer 1: TCP between all pairs, both ways, on the ports that vLLM will use and on ephemeral ones.

Real listeners and real bytes: a firewall, a wrong route or a path whose MTU is too small shows here, and ICMP
decides nothing. Ports: vLLM 0.33.0 vllm/engine/arg_utils.py (29550 data-parallel RPC, 29501 master),
vllm/envs.py (5600 NIXL side channel), 8000 the API server.
"""

from __future__ import annotations

import secrets
import shlex
import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from epdoctor.bench.expect import Expectation
from epdoctor.bench.fleet import Call, OperationFailed, WorkerLost
from epdoctor.bench.ladder import Bench
from epdoctor.bench.pairs import rounds
from epdoctor.bench.results import LayerResult, Measurement, count_of, judge_value
from epdoctor.bench.settle import and_more, settle
from epdoctor.model import Status

NUMBER, NAME, TITLE = "1", "tcp", "TCP on vLLM's ports and ephemeral ones"
PORTS = (29550, 29501, 5600, 8000, 0)
"""0: any free port, as ranks take them for Gloo, NCCL and NVSHMEM bootstraps."""
PAYLOAD_BYTES = 256 * 1024
"""Many times the largest MTU, so that full-size packets travel both ways."""
CONNECT_S = 5.0
TRANSFER_S = 10.0
"""For PAYLOAD_BYTES there and back: 50 kB/s, a thousandth of a slow management network."""
CHECKS = ("network.ports-open", "names.own-name-not-loopback", "network.vllm-ports-free")

_WORDS = {
    "ECONNREFUSED": "connection refused",
    "timeout": "no answer (dropped by a firewall, or no route back)",
    "EHOSTUNREACH": "no route to host, or rejected by a firewall",
    "ENETUNREACH": "no route to the network",
    "ECONNRESET": "connection reset",
    "EPROTO": "another program answers there",
    "name": "the name does not resolve",
    "EPERM": "forbidden by this node's own firewall",
}


def port_name(port: int) -> str:
    return f"port {port}" if port else "an ephemeral port"


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    names = bench.alive
    if len(names) < 2:
        result.reason = "one node: nothing to connect to"
        return result
    token = secrets.token_hex(8)
    partners: dict[str, list[str]] = {name: [] for name in names}
    for one in rounds(names, bench.pairs):
        for a, b in one:
            partners[a].append(b)
            partners[b].append(a)
    life_s = max(1.0, min(bench.left_s(), 60.0))
    with ExitStack() as stack:
        bound = _listen(bench, names, token, life_s, stack)
        calls: dict[str, Call] = {}
        for name in names:
            targets = [
                {
                    "node": other,
                    "host": bench.address_of(other),
                    "asked": port,
                    "port": bound[other][port].get("port", port),
                    # Who holds the port already is not ours: that it can be reached is all we learn.
                    "echo": "port" in bound[other][port],
                }
                for other in partners[name]
                if other in bound
                for port in PORTS
                if bound[other][port].get("error", "EADDRINUSE") == "EADDRINUSE"
            ]
            params = {
                "targets": targets, "token": token, "bytes": PAYLOAD_BYTES, "timeout_s": CONNECT_S,
                "transfer_s": min(TRANSFER_S, life_s),
                "slow_ms": bench.expect["tcp_connect"].at_most or 1e9,
            }  # fmt: skip
            try:
                calls[name] = stack.enter_context(
                    bench.fleet[name].start("tcp_probe", params, timeout_s=life_s)
                )
            except WorkerLost:
                continue
        for name, call in calls.items():
            bench.watch(f"TCP from {name}")
            try:
                for value in call.each():
                    result.measurements.append(_measurement(name, value, bench.expect["tcp_connect"]))
            except (OperationFailed, WorkerLost) as failed:
                seen = {(m.b, m.what) for m in result.measurements if m.a == name}
                why = "no time was left for it (--budget)" if _too_late(failed) else str(failed)
                result.measurements += [
                    Measurement(port_name(port), name, other, status=Status.UNKNOWN, detail=why)
                    for other in partners[name]
                    for port in PORTS
                    if (other, port_name(port)) not in seen
                ]
    result.measurements += [
        Measurement("listeners", name, status=Status.UNKNOWN, detail="they did not start in time")
        for name in names
        if name not in bound and not bench.fleet[name].lost
    ]
    for name, ports in bound.items():
        for port, answer in ports.items():
            if answer.get("error") == "EADDRINUSE":
                result.notes.append(f"{port_name(port)} of {name} is taken already: only reached, not tried")
            elif "error" in answer:
                result.measurements.append(
                    Measurement(
                        port_name(port),
                        name,
                        status=Status.UNKNOWN,
                        detail=f"cannot listen: {answer['error']}",
                    )
                )
    settle(result, broken=_broken, summary=lambda: _summary(result, names))
    if result.failures:
        result.next = _next(result)
    return result


def _too_late(failed: Exception) -> bool:
    return isinstance(failed, OperationFailed) and failed.end == "timeout"


def _listen(
    bench: Bench, names: list[str], token: str, life_s: float, stack: ExitStack
) -> dict[str, dict[int, dict[str, Any]]]:
    """Node -> port -> {"port": bound} or {"error": errno name}."""
    servers: dict[str, Call] = {}
    for name in names:
        try:
            call = bench.fleet[name].start(
                "tcp_serve", {"ports": list(PORTS), "token": token}, timeout_s=life_s + 10
            )
        except WorkerLost:
            continue
        servers[name] = stack.enter_context(call)
    bound: dict[str, dict[int, dict[str, Any]]] = {}
    for name, call in servers.items():
        try:
            ports = call.value(timeout_s=min(10.0, life_s))["ports"]
            bound[name] = {port: dict(ports[str(port)]) for port in PORTS}
        except (OperationFailed, WorkerLost, KeyError, TypeError, ValueError):
            continue
    return bound


def _measurement(name: str, value: Any, expect: Expectation) -> Measurement:
    """One answer of tcp_probe; garbage is unknown."""
    try:
        what, other = port_name(int(value["port"])), str(value["node"])
        if value["ok"]:
            ms = float(value["connect_ms"])
            mtu = f"path MTU {int(value['path_mtu'])}" if "path_mtu" in value else ""
            found = Measurement(
                what, name, other, value=ms, unit="ms", expected=expect.at_most, expected_from=expect.source,
                detail=mtu, lower_is_better=True,
            )  # fmt: skip
            return replace(found, status=judge_value(found))
        error = str(value.get("error", ""))
        detail = _WORDS.get(error, error)
        if value.get("stage") == "transfer":
            got = f"{int(value.get('bytes', 0)) // 1024} of {PAYLOAD_BYTES // 1024} KiB"
            if error == "slow":
                cut = float(value["limit_s"]) < TRANSFER_S
                detail = f"slow: {got} came back in {float(value['limit_s']):.0f} s"
                return Measurement(
                    what, name, other, status=Status.UNKNOWN if cut else Status.FAIL,
                    detail=f"{detail}, then the budget was spent" if cut else detail,
                )  # fmt: skip
            lost = (
                "full-size packets get lost (MTU of the path?)"
                if not value.get("bytes")
                else "packets get lost"
            )
            detail = (
                f"connects, then stalls after {got}: {lost}"
                if error == "timeout"
                else f"breaks in the transfer: {detail}"
            )
        return Measurement(what, name, other, status=Status.FAIL, detail=detail)
    except (KeyError, TypeError, ValueError):
        return Measurement("answer", name, status=Status.UNKNOWN, detail="an answer that makes no sense")


def _broken(failures: list[Measurement]) -> str:
    first = failures[0]
    why = (
        f"connects only after {first.value:.0f} ms: packets are lost"
        if first.value is not None
        else first.detail
    )
    return f"{first.what} of {first.b} from {first.a}: {why}{and_more(failures)}"


def _next(result: LayerResult) -> str:
    """The checks that explain a closed port, on the node that nothing reaches; empty: no port is closed."""
    failures = result.failures
    if not any(one.what.startswith("port ") for one in failures):
        return ""
    first = result.suspects[0]
    at = failures[0].b
    if first.kind in ("node", "pair"):
        at = ",".join(first.name.split(" and "))
    return f"epdoctor check --all-nodes --select network -l {shlex.quote(at)}"


def _summary(result: LayerResult, names: list[str]) -> str:
    times = [one.value for one in result.measurements if one.value is not None]
    mtus = sorted(
        {one.detail.removeprefix("path MTU ") for one in result.measurements if one.detail}, key=int
    )
    pairs = len({frozenset((m.a, m.b)) for m in result.measurements if m.b})
    if not times:
        return count_of(len(names), "node")
    return (
        f"{count_of(pairs, 'pair')} both ways, {len(PORTS)} ports, "
        f"connect {statistics.median(times):.1f} ms (slowest {max(times):.1f})"
    ) + (f", path MTU {' and '.join(mtus)}" if mtus else "")
