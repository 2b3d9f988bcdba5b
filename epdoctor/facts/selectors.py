"""Names of interfaces and HCAs in environment variables, each resolved with its program's own syntax. Pure.

Sources: NCCL src/misc/utils.cc (parseStringList, matchIfList) and src/transport/net_ib (NCCL_IB_HCA), 2.30.7;
torch ProcessGroupGloo (GLOO_SOCKET_IFNAME: comma list, exact); TensorPipe (TP_SOCKET_IFNAME: one exact name);
NVSHMEM transport_common.cpp nvshmemt_parse_hca_list (exact names, `^` excludes), 3.5.1; UCX
src/ucp/core/ucp_context.c ucp_str_array_search (exact `device:port` or netdev, `all`), 1.23.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

HcaPort = tuple[str, int]


@dataclass(frozen=True)
class Selection:
    """What a value selects on this node."""

    names: tuple[str, ...]
    """Interfaces or HCAs, in the node's order."""
    ports: tuple[HcaPort, ...] = ()
    """HCA selectors only: the selected (device, port)."""
    missing: tuple[str, ...] = ()
    """Entries of the value that name nothing here. Empty for an exclusion list."""
    excludes: bool = False
    """The value says what is not wanted (`^`)."""
    exact: bool = True
    """Names are matched whole; False: an entry is a prefix and says little about single devices."""


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _port(text: str) -> int | None:
    """A port as atoi would read it; None: any."""
    digits = ""
    for letter in text:
        if not ("0" <= letter <= "9") or len(digits) > 6:
            break
        digits += letter
    return int(digits) if digits else None


def _nccl_flags(value: str) -> tuple[bool, bool, list[str]]:
    value = value.strip()
    excludes = value.startswith("^")
    value = value[1:] if excludes else value
    exact = value.startswith("=")
    return excludes, exact, _entries(value[1:] if exact else value)


def nccl_interfaces(value: str, interfaces: Iterable[str]) -> Selection:
    """NCCL_SOCKET_IFNAME: prefixes, `^` excludes, `=` exact. NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME too."""
    excludes, exact, entries = _nccl_flags(value)
    wanted = [entry.split(":", 1)[0] for entry in entries]

    def matches(name: str, entry: str) -> bool:
        return name == entry if exact else name.startswith(entry)

    known = tuple(interfaces)
    hit = tuple(
        name for name in known if not wanted or any(matches(name, entry) for entry in wanted) != excludes
    )
    missing = () if excludes else tuple(w for w in wanted if not any(matches(name, w) for name in known))
    return Selection(hit, missing=missing, excludes=excludes, exact=exact)


def exact_interfaces(value: str, interfaces: Iterable[str]) -> Selection:
    """GLOO_SOCKET_IFNAME and TP_SOCKET_IFNAME: whole names, separated by commas."""
    known = tuple(interfaces)
    wanted = _entries(value)
    return Selection(
        tuple(name for name in known if name in wanted), missing=tuple(w for w in wanted if w not in known)
    )


def nccl_hcas(value: str, ports: Iterable[HcaPort]) -> Selection:
    """NCCL_IB_HCA: prefixes with an optional `:port` (`:rail:plane` behind it is ignored), `^`, `=`."""
    excludes, exact, entries = _nccl_flags(value)
    wanted = [
        (entry.split(":")[0], _port(entry.split(":")[1]) if ":" in entry else None) for entry in entries
    ]

    def matches(candidate: HcaPort, entry: tuple[str, int | None]) -> bool:
        name, port = candidate
        named = name == entry[0] if exact else name.startswith(entry[0])
        return named and entry[1] in (None, port)

    return _select(tuple(ports), entries, wanted, matches, excludes=excludes, exact=exact)


def nvshmem_hcas(value: str, ports: Iterable[HcaPort]) -> Selection:
    """NVSHMEM_HCA_LIST: whole names with an optional `:port`, `^` excludes all entries."""
    value = value.strip()
    excludes = value.startswith("^")
    entries = _entries(value[1:] if excludes else value)
    wanted = [
        (entry.split(":")[0], _port(entry.split(":")[1]) if ":" in entry else None) for entry in entries
    ]

    def matches(candidate: HcaPort, entry: tuple[str, int | None]) -> bool:
        return candidate[0] == entry[0] and entry[1] in (None, candidate[1])

    return _select(tuple(ports), entries, wanted, matches, excludes=excludes, exact=True)


def _select(
    ports: tuple[HcaPort, ...],
    entries: list[str],
    wanted: list[tuple[str, int | None]],
    matches: object,
    *,
    excludes: bool,
    exact: bool,
) -> Selection:
    assert callable(matches)
    hit = tuple(p for p in ports if not wanted or any(matches(p, entry) for entry in wanted) != excludes)
    missing: tuple[str, ...] = ()
    if not excludes:
        missing = tuple(
            text
            for text, entry in zip(entries, wanted, strict=True)
            if not any(matches(p, entry) for p in ports)
        )
    return Selection(tuple(dict.fromkeys(name for name, _ in hit)), hit, missing, excludes, exact)


def hca_prefix(value: str, names: Iterable[str]) -> Selection:
    """NVSHMEM_HCA_PREFIX (default "mlx5"): HCAs whose name starts with it are looked at, all others never."""
    prefix = value.strip()
    hit = tuple(name for name in names if name.startswith(prefix))
    return Selection(hit, missing=() if hit else (prefix,), exact=False)


def ucx_devices(value: str, ports: Iterable[HcaPort], interfaces: Iterable[str]) -> Selection:
    """UCX_NET_DEVICES: whole names, `mlx5_0:1` for an HCA port and `eth0` for a netdev; `all`. Patterns and
    `^` are taken where they are met: an entry with a pattern that matches nothing is not called missing,
    since UCX versions differ in what they take."""
    known_ports = tuple(ports)
    known = {f"{name}:{port}": (name, port) for name, port in known_ports}
    devices = (*known, *tuple(interfaces))
    value = value.strip()
    excludes = value.startswith("^")
    entries = _entries(value[1:] if excludes else value)
    if "all" in entries or not entries:
        hits = [] if excludes and entries else list(devices)
        return Selection(tuple(hits), known_ports if hits else (), excludes=excludes)
    matched: list[str] = []
    missing: list[str] = []
    for entry in entries:
        special = any(sign in entry for sign in "*?[<")
        found = [d for d in devices if d == entry or (special and fnmatch.fnmatchcase(d, entry))]
        matched += found
        if not found and not special and not excludes:
            missing.append(entry)
    hits = [d for d in devices if (d in matched) != excludes]
    return Selection(tuple(hits), tuple(known[d] for d in hits if d in known), tuple(missing), excludes)
