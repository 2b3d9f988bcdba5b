"""Facts of RoCE's quality of service, and of Fabric Manager: garbage gives a value or Unmeasured."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import fabric_manager, qos
from epdoctor.facts.base import CollectOptions, Files, Source

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
@given(_ENTRY)
def test_garbage_gives_a_value_or_unmeasured(one: Any) -> None:
    for parse in (fabric_manager.parse, qos.parse):
        source = Source({"fabric_manager.dpkg": one, "qos.files": one}, root=True)
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


def test_quality_of_service_is_read_from_files_alone() -> None:
    assert all(isinstance(probe, Files) for probe in qos.probes(CollectOptions()))
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
