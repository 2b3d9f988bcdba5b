"""Host facts: recorded output in, typed values out; hostile text gives a value or Unmeasured only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, container, kernel_log, limits, modules, shm, slurm, system
from epdoctor.facts.base import CollectOptions, Source, require
from epdoctor.model import Goal
from epdoctor.rules import NotApplicable
from epdoctor.rules.generic import sysctl_at_least
from epdoctor.rules.kernel_log import no_mlx5_errors, no_sxid, no_xid
from epdoctor.rules.limits import memlock_drop_in, unit_of

RAW = Path(__file__).parent / "records" / "raw"
DEBIAN: dict[str, Any] = json.loads((RAW / "host" / "debian12.json").read_text())
MODULES = (system, limits, shm, container, kernel_log, slurm)


def files(name: str, texts: dict[str, str]) -> Source:
    return Source({name: {"status": "ran", "rc": 0, "data": [[path, text] for path, text in texts.items()]}})


def log(*lines: str, **values: str) -> kernel_log.KernelLog:
    rows = [["source", "kernel ring buffer"], *values.items(), *(["line", line] for line in lines)]
    return kernel_log.parse(
        Source({"kernel_log.lines": {"status": "ran", "rc": 0, "data": [list(r) for r in rows]}})
    )


def test_recorded_debian_machine() -> None:
    found = system.parse(Source(DEBIAN))
    assert found.kernel_version == (6, 18, 44)
    assert (found.os_id, found.os_version, found.libc_version) == ("debian", "12", "2.36")
    assert found.virtualization == "vm"
    assert found.numa_nodes == 1
    assert found.sysctl("vm.max_map_count") == 65530
    assert found.sysctl("kernel.yama.ptrace_scope") is None, "this kernel has no Yama"
    assert found.remove_ipc is True, "the default that Debian's logind.conf documents"
    assert require(found.clock).synchronised is False
    assert limits.session_limit(limits.parse(Source(DEBIAN)), "memlock") == (8388608, 8388608)
    assert limits.parse(Source(DEBIAN)).units["slurmd"].pair == (None, None)


def test_a_leftover_mark_makes_no_container() -> None:
    found = container.parse(Source(DEBIAN))
    assert found.runtime == "docker"
    assert found.in_container is False


def test_recorded_gpu_machine_has_unlimited_memlock() -> None:
    text = (RAW / "host" / "h100x1-limits.txt").read_text()
    found = limits.parse_proc_limits(text)
    assert found == {"stack": (8388608, None), "nofile": (20000, 20000), "memlock": (None, None)}


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("infinity", (None, None)),
        ("8M", (8 << 20, 8 << 20)),
        ("64K:infinity", (65536, None)),
        ("8388608", (8388608, 8388608)),
    ],
)
def test_systemd_sizes(text: str, pair: limits.Pair) -> None:
    assert limits.parse_systemd_size(text) == pair


@pytest.mark.parametrize("text", ["", "8X", "-1", "1:2:3", "٣M", "unlimited"])
def test_what_systemd_would_refuse_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        limits.parse_systemd_size(text)


def test_drop_ins_come_in_the_order_of_their_names_and_etc_hides_lib() -> None:
    found = limits.parse(
        files(
            "limits.files",
            {
                "/lib/systemd/system/containerd.service": "[Service]\nLimitMEMLOCK=1M\n",
                "/lib/systemd/system/containerd.service.d/50-a.conf": "[Service]\nLimitMEMLOCK=2M\n",
                "/etc/systemd/system/containerd.service.d/50-a.conf": "[Service]\nLimitMEMLOCK=3M\n",
                "/run/systemd/system/containerd.service.d/10-b.conf": "[Service]\nLimitMEMLOCK=4M\n",
                "/etc/systemd/system.conf.d/x.conf": "[Manager]\nDefaultLimitMEMLOCK=infinity\n",
            },
        )
    )
    assert found.units["containerd"].pair[0] == 3 << 20
    assert found.installed_units == ("containerd",)
    assert found.systemd_default_memlock is not None
    assert found.systemd_default_memlock.pair == (None, None)


def test_container_runtimes_own_defaults() -> None:
    found = limits.parse(
        files(
            "limits.files",
            {
                "/etc/docker/daemon.json": '{"default-ulimits": {"memlock": {"Soft": -1, "Hard": -1}}}',
                "/etc/crio/crio.conf": '# default_ulimits = [ "memlock=1:1" ]\n',
                "/etc/crio/crio.conf.d/10.conf": 'default_ulimits = ["nofile=1:2", "memlock=65536:-1"]\n',
            },
        )
    )
    assert found.docker_default_memlock is not None
    assert found.docker_default_memlock.pair == (None, None)
    assert found.crio_default_memlock is not None
    assert found.crio_default_memlock.pair == (65536, None)


def test_limits_are_written_for_people() -> None:
    assert [limits.limit_text(n) for n in (None, 65536, 8388608, 92905472, 12)] == [
        "unlimited",
        "64 KiB",
        "8 MiB",
        "88.6 MiB",
        "12 B",
    ]


@pytest.mark.parametrize(
    ("line", "seconds", "text"),
    [
        ("<6>[   12.345678] NVRM: x", 12.345678, "NVRM: x"),
        ("Nov 22 01:02:03 gpu01 kernel: [86400.5] NVRM: x", 86400.5, "NVRM: x"),
        ("[   12.5][  T123] NVRM: x", 12.5, "NVRM: x"),
        ("NVRM: x", None, "NVRM: x"),
        (
            "2026-11-22T01:02:03 gpu01 kernel: NVRM: x [y] z",
            None,
            "2026-11-22T01:02:03 gpu01 kernel: NVRM: x [y] z",
        ),
    ],
)
def test_kernel_time_stamps(line: str, seconds: float | None, text: str) -> None:
    assert kernel_log.split_stamp(line) == (seconds, text)


def test_xid_lines_of_old_and_new_drivers() -> None:
    found = log(
        "[ 1.0] NVRM: Xid (PCI:0000:06:00): 79, pid=1234, GPU has fallen off the bus.",
        "[ 2.0] NVRM: Xid (0000:01:00): 13, 0005 00000000",
        "[ 3.0] NVRM: Xid (PCI:0000:06:00): not a number",
        "[ 4.0] NVRM: Xid (",
    )
    assert [(event.device, event.code) for event in found.events] == [("0000:06:00", 79), ("0000:01:00", 13)]


def test_an_unreadable_log_says_that_root_could() -> None:
    source = Source(
        {"kernel_log.lines": {"status": "ran", "rc": 0, "data": [["error", "Operation not permitted"]]}}
    )
    with pytest.raises(Unmeasured, match=r"Operation not permitted \(needs root\)"):
        kernel_log.parse(source)


def test_slurm_propagation_as_in_slurm_conf() -> None:
    def propagates(text: str) -> bool:
        return slurm.parse(files("slurm.files", {"/etc/slurm/slurm.conf": text})).propagates_memlock()

    assert propagates("ClusterName=x\n"), "all limits, by default"
    assert not propagates("PropagateResourceLimits=NONE\n")
    assert not propagates("PropagateResourceLimitsExcept=MEMLOCK # jobs keep slurmd's\n")
    assert not propagates("propagateresourcelimits=NOFILE,STACK\n")
    assert propagates("#PropagateResourceLimits=NONE\n")


@pytest.mark.parametrize(
    ("release", "numbers"),
    [("6.8.0-45-generic", (6, 8, 0)), ("5.14", (5, 14, 0)), ("4.18.0", (4, 18, 0)), ("x", ()), ("", ())],
)
def test_version_numbers(release: str, numbers: tuple[int, ...]) -> None:
    assert system.version_numbers(release) == numbers


def test_boot_options_leave_out_what_differs_by_nature() -> None:
    text = "BOOT_IMAGE=/vmlinuz-6.8 root=UUID=1-2 ro quiet iommu=pt ip=10.0.0.7::::gpu07:eth0:off"
    node = Node("n1", files("system.files", {"/proc/cmdline": text}), Goal(), CollectOptions())
    assert system.DIGEST["system.cmdline"](node) == "iommu=pt quiet ro"


def test_a_unit_name_from_a_node_never_carries_a_command() -> None:
    scanned = {"pid": 1, "role": "daemon", "comm": "containerd"}

    def unit(cgroup: str) -> str:
        probe = {
            "status": "ran",
            "rc": 0,
            "data": [["vllm_count", 0], ["process", {**scanned, "cgroup": cgroup}]],
        }
        node = Node("n1", Source({"processes.scan": probe}), Goal(), CollectOptions())
        return unit_of(node.processes.daemons["containerd"], "containerd")

    assert unit("0::/system.slice/k3s.service") == "k3s.service"
    assert unit("0::/system.slice/x; rm -rf $HOME;.service") == "containerd.service"
    assert all("k3s.service" in command for command in memlock_drop_in("k3s.service"))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        "/proc/self/limits",
        "/proc/self/status",
        "/proc/self/uid_map",
        "/proc/cpuinfo",
        "/proc/cmdline",
        "/proc/uptime",
        "/proc/meminfo",
        "/proc/sys/kernel/osrelease",
        "/sys/devices/system/node/online",
        "/etc/docker/daemon.json",
        "/etc/crio/crio.conf",
        "/etc/slurm/slurm.conf",
        "/etc/slurm/cgroup.conf",
        "/etc/systemd/logind.conf",
        "/proc/self/ns/pid",
        "/dev/shm",
        "segment",
        "line",
        "source",
        "error",
        "first_line",
        "omitted",
        "env",
        "clock_synchronised",
        "clock_max_error_us",
        "machine",
        "libc",
        "cgroup_memory_bytes",
        "offset_s",
    ]
)
TEXTS = st.text(max_size=200) | st.sampled_from(
    [
        "Max locked memory 9 9 bytes",
        "MemTotal: x kB",
        "0-",
        "1-0,5",
        "{",
        '{"default-ulimits": []}',
        "memlock=:-",
        "include",
        "[ 1e999] NVRM: Xid (PCI:): 9999999999999, ",
        "SXid (PCI:0): 1",
        "[nan] AER: Uncorrectable (Fatal)",
        "pid:[4026531836]",
        "CapEff:\tzz",
        "default_ulimits=['memlock=1']",
        "flags\t: hypervisor",
    ]
)
ROWS = st.lists(
    st.tuples(PATHS, TEXTS | JUNK).map(list)
    | st.tuples(PATHS, st.none(), st.just("EACCES")).map(list)
    | JUNK,
    max_size=12,
)
NAMES = [probe.name for module in MODULES for probe in module.probes(CollectOptions())] + ["controller.clock"]
RECORDS = st.dictionaries(
    st.sampled_from(NAMES),
    st.fixed_dictionaries(
        {
            "status": st.sampled_from(["ran", "ran", "ran", "timeout", "denied", "skipped"]),
            "rc": st.just(0),
            "data": ROWS | JUNK,
        }
    ),
    max_size=10,
)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """The value, or the Unmeasured; anything else that is raised fails the test."""
    try:
        return function(*arguments)
    except Unmeasured as reason:
        return reason


@settings(deadline=None, max_examples=150)
@given(record=RECORDS)
def test_garbage_gives_a_value_or_unmeasured(record: dict[str, Any]) -> None:
    """One record for all parsers, digests and rules: making it costs more than reading it."""
    source = Source(record)
    for module in MODULES:
        assert outcome(module.parse, source) is not None, module.__name__
    node = Node("n1", source, Goal(), CollectOptions())
    for function in (*system.DIGEST.values(), *limits.DIGEST.values()):
        assert outcome(function, node) is not None
    for found in (
        outcome(lambda: list(no_xid(node, reset=[95], reboot=[79], minor=[13]))),
        outcome(lambda: list(no_sxid(node))),
        outcome(lambda: list(no_mlx5_errors(node, minor=[]))),
    ):
        assert isinstance(found, Unmeasured) or all(problem.found for problem in found)


def test_the_sysctl_rule_names_key_and_value() -> None:
    node = Node(
        "n1", files("system.files", {"/proc/sys/vm/max_map_count": "65530\n"}), Goal(), CollectOptions()
    )
    (problem,) = sysctl_at_least(node, key="vm.max_map_count", minimum=262144)
    assert (problem.found, problem.expected) == ("vm.max_map_count = 65530", "at least 262144")
    assert list(sysctl_at_least(node, key="vm.max_map_count", minimum=65530)) == []
    with pytest.raises(NotApplicable, match="This kernel has no"):
        list(sysctl_at_least(node, key="kernel.numa_balancing", minimum=0))


def test_module_names_are_compared_as_the_kernel_prints_them() -> None:
    probe = {"status": "ran", "rc": 0, "data": [["/proc/modules", "nvidia_peermem 16384 0 - Live 0x0\n"]]}
    names = [probe.name for probe in modules.probes(CollectOptions())]
    node = Node("n1", Source(dict.fromkeys(names, probe)), Goal(), CollectOptions())
    assert node.modules.has("nvidia-peermem")
    assert not node.modules.has("gdrdrv")
