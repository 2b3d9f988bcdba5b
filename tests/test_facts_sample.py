"""--sample: two readings of counters. The probe runs for real on a sysfs tree that changes between the two, and the
ethtool ioctl on this machine's own interfaces."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.cli.options import seconds
from epdoctor.collect.plan import all_probes
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import sample
from epdoctor.facts.base import CollectOptions, Source

SCRIPT = Path(sample.__file__).parent.parent / "probes" / "sample.py"


def script(**names: Any) -> dict[str, Any]:
    """The probe's functions, without its last line that runs it."""
    text = SCRIPT.read_text().replace("\nmain()\n", "\n")
    scope: dict[str, Any] = {"PARAMS": {"seconds": 0.0}, "emit": lambda key, value: None}
    exec(compile(text, str(SCRIPT), "exec"), scope)
    scope.update(names)
    return scope


def tree(folder: Path, downs: int, errors: int, carrier: int) -> None:
    port = folder / "ib" / "mlx5_0" / "ports" / "1"
    for path, value in (
        (port / "counters" / "link_downed", downs),
        (port / "hw_counters" / "local_ack_timeout_err", errors),
        (port / "hw_counters" / "lifespan", "not a number"),
        (folder / "net" / "eth9x" / "carrier_changes", carrier),
        (folder / "net" / "eth9x" / "statistics" / "rx_errors", 5),
        (folder / "ib" / "mlx5_0" / "device" / "net" / "eth9x" / "x", 0),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_the_probe_brings_what_grew_and_what_was_cleared(tmp_path: Path) -> None:
    tree(tmp_path, 3, 70, 2)
    rows: list[list[Any]] = []
    scope = script(
        IB=str(tmp_path / "ib"), NET=str(tmp_path / "net"), emit=lambda key, value: rows.append([key, value])
    )

    class Clock:
        monotonic = staticmethod(iter([0.0, 1.0, 10.0]).__next__)

        @staticmethod
        def sleep(seconds: float) -> None:
            tree(tmp_path, 4, 1, 2)

    scope["time"] = Clock
    scope["main"]()
    facts = sample.parse(Source({"sample.counters": {"status": "ran", "rc": 0, "data": rows}}))
    assert facts is not None
    port, netdev = sorted(facts.movements, key=lambda movement: movement.kind, reverse=True)
    assert facts.seconds == 10.0
    assert (port.name, dict(port.moved), port.cleared) == (
        "mlx5_0/1",
        {"link_downed": 1},
        ("local_ack_timeout_err",),
    )
    assert (netdev.name, netdev.counters_read, dict(netdev.moved)) == ("eth9x", 2, {})


def test_driver_statistics_are_what_the_kernel_names_them() -> None:
    """GDRVINFO, GSTRINGS and GSTATS agree on how many there are, or the texts would be torn."""
    scope = script()
    netdevs = [path.name for path in Path("/sys/class/net").iterdir()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        found = {name: scope["ethtool"](sock, name) for name in netdevs}
        assert scope["ethtool"](sock, "no-such-netdev") == {}
    if not any(found.values()):
        pytest.skip("no interface here has driver statistics")
    for values in found.values():
        assert all(name.isprintable() and value >= 0 for name, value in values.items())


def test_nothing_is_sampled_unless_asked() -> None:
    assert "sample.counters" not in {probe.name for probe in all_probes(CollectOptions())}
    (probe,) = [p for p in all_probes(CollectOptions(sample_s=10)) if p.name == "sample.counters"]
    assert probe.timeout_s > 10
    assert sample.parse(Source({})) is None


CONTEXT = click.Context(click.Command("check"))
OPTION = click.Option(["--sample"])


@pytest.mark.parametrize(
    ("text", "wanted"), [("10", 10), ("10s", 10), ("1.5s", 1.5), ("2m", 120), (None, None)]
)
def test_times_are_read_as_people_write_them(text: str | None, wanted: float | None) -> None:
    assert seconds(1, 600)(CONTEXT, OPTION, text) == wanted


@pytest.mark.parametrize("text", ["0", "-1s", "11m", "x", "1e9", ""])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 30s"):
        seconds(1, 600)(CONTEXT, OPTION, text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["read", "moved", "cleared", "a"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.lists(st.tuples(st.sampled_from(["seconds", "port/mlx5_0/1", "netdev/e", "x", ""]), VALUES)))
def test_any_rows_give_a_sample_or_unmeasured(rows: list[tuple[str, Any]]) -> None:
    entry = {"status": "ran", "rc": 0, "data": [list(row) for row in rows]}
    try:
        facts = sample.parse(Source({"sample.counters": entry}))
    except Unmeasured:
        return
    assert facts is not None
    assert all(step > 0 for movement in facts.movements for step in movement.moved.values())
