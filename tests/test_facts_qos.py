"""Facts of RoCE's quality of service, of Fabric Manager and IMEX: garbage gives a value or Unmeasured."""

from __future__ import annotations

import contextlib
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import fabric_manager, imex, qos
from epdoctor.facts.base import CollectOptions, Files, Script, Source

_ROW = st.lists(st.one_of(st.text(max_size=60), st.none(), st.integers()), max_size=4)
_ENTRY = st.one_of(
    st.none(),
    st.text(max_size=9),
    st.fixed_dictionaries(
        {"status": st.sampled_from(["ran", "timeout", "skipped", "not-found", "x"])},
        optional={"stdout": st.text(max_size=200), "rc": st.integers(), "data": st.lists(_ROW, max_size=5)},
    ),
)


@settings(max_examples=60)
@given(_ENTRY, _ENTRY)
def test_garbage_gives_a_value_or_unmeasured(one: Any, other: Any) -> None:
    names = ("qos.files", "fabric_manager.version", "fabric_manager.files", "imex.files", "imex.domain")
    for parse in (fabric_manager.parse, qos.parse, imex.parse):
        source = Source(
            {"fabric_manager.dpkg": one, "qos.dcb": other} | dict.fromkeys(names, other), root=True
        )
        with contextlib.suppress(Unmeasured):
            parse(source)


def test_an_upstream_version_has_neither_epoch_nor_revision() -> None:
    source = Source(
        {
            "fabric_manager.dpkg": {
                "status": "ran", "rc": 1, "argv": ["dpkg-query"],
                "stdout": "ii  nvidia-fabricmanager-580 1:580.95.05-0ubuntu1\n",
            },
        },
        root=True,
    )  # fmt: skip
    assert fabric_manager.parse(source) == fabric_manager.FabricManager(
        "580.95.05", "nvidia-fabricmanager-580", ""
    )


def test_a_machine_without_fabric_manager_is_no_unknown() -> None:
    source = Source({"fabric_manager.dpkg": {"status": "skipped"}}, root=True)
    assert not fabric_manager.parse(source).version


def test_quality_of_service_runs_no_program() -> None:
    assert all(isinstance(probe, (Files, Script)) for probe in qos.probes(CollectOptions()))
    source = Source(
        {"qos.files": {"status": "ran", "data": [
            ["/sys/class/net/rail0/ecn/roce_np/enable/3", "1\n"],
            ["/sys/class/net/rail0/ecn/roce_rp/enable/3", "0\n"],
            ["/sys/class/infiniband/mlx5_0/tc/1/traffic_class", "Global tclass=106\n"],
        ]}},
        root=True,
    )  # fmt: skip
    assert qos.parse(source) == qos.Qos({"rail0": "np 3, rp none"}, {"mlx5_0": "Global tclass=106"})


def test_what_no_driver_shows_is_nothing() -> None:
    with pytest.raises(Unmeasured):
        qos.parse(Source({"qos.files": {"status": "timeout", "seconds": 10}}, root=True))


# ------------------------------------------------------------------------------------------ PFC by netlink


@cache
def dcb_script() -> dict[str, Any]:
    """The names of epdoctor/probes/dcb.py, without a question asked."""
    text = Path(qos.__file__).parent.parent.joinpath("probes", "dcb.py").read_text()
    space: dict[str, Any] = {"emit": lambda key, value: None, "PARAMS": {}}
    exec(compile(text.removesuffix("main()\n"), "dcb.py", "exec"), space)
    return space


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + b"\0" * (-len(content) % 4)


def answer(*ieee: bytes) -> bytes:
    """As the kernel answers DCB_CMD_IEEE_GET: IFNAME, the nest IEEE, DCBX (net/dcb/dcbnl.c, dcbnl_ieee_fill)."""
    body = struct.pack("=BBH", 0, 21, 0) + attribute(1, b"eth0\0") + attribute(13, b"".join(ieee))
    body += attribute(14, b"\x09")
    return struct.pack("=IHHII", 16 + len(body), 78, 0, 1, 0) + body


def ieee_pfc(enabled: int) -> bytes:
    return attribute(2, struct.pack("=BBBxHxx8Q8Q", 8, enabled, 0, 0, *range(16)))


def apps(*rows: tuple[int, int, int]) -> bytes:
    return attribute(3, b"".join(attribute(1, struct.pack("=BBH", *row)) for row in rows))


def test_pfc_and_dscp_of_an_answer() -> None:
    decode = dcb_script()["decode"]
    ets = attribute(1, bytes(83))
    table = apps((5, 3, 26), (5, 0, 0), (1, 3, 0x8915))
    assert decode(answer(ets, ieee_pfc(0b1000), table)) == {"pfc": 8, "dscp": {"26": 3, "0": 0}}
    assert decode(answer(ets, ieee_pfc(0))) == {"pfc": 0}
    assert decode(answer(ets)) == {}
    error = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -95) + bytes(16)
    assert decode(error) == {"errno": 95}


@settings(max_examples=200)
@given(st.binary(max_size=120), st.booleans())
def test_garbage_from_the_kernel_ends(data: bytes, framed: bool) -> None:
    value = dcb_script()["decode"](answer(data) if framed else data)
    source = Source({"qos.dcb": {"status": "ran", "data": [["eth0", value]]}}, root=True)
    assert set(qos.parse(source).dcb or {}) | set(qos.parse(source).dcb_unread) == {"eth0"}


def test_a_netdev_without_dcb_answers_so() -> None:
    """The loopback device: the kernel understood the question, and its driver has no DCB."""
    import socket

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.settimeout(5)
        assert dcb_script()["ask"](link, 1, "lo") == {"errno": 95}
        assert dcb_script()["ask"](link, 2, "nothere0")["errno"] in (19, 95)


def test_pfc_in_a_sentence() -> None:
    assert str(qos.Dcb(frozenset({3}), {26: 3, 40: 3})) == "PFC 3; DSCP 40->3"
    assert str(qos.Dcb(frozenset(), {26: 3})) == "PFC off; DSCP in steps of eight"
    assert str(qos.Dcb(frozenset({3, 5}), {})) == "PFC 3+5; no DSCP table"
