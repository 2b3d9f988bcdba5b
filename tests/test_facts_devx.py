"""What the HCAs grant: the probe against libraries compiled from rdma-core's headers, the parser, the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, devx
from epdoctor.facts.base import CollectOptions, Script, Source
from epdoctor.model import Goal, Problem
from epdoctor.rules.devx import rdma_devx_granted
from tests.case_files import base_probes

SCRIPT = Path(devx.__file__).parent.parent / "probes" / "devx.py"
RUN = (
    "import json, resource, sys; out = sys.stdout; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    "exec(compile(open(sys.argv[1]).read(), 'devx.py', 'exec'), {'PARAMS': json.loads(sys.argv[2]),"
    " 'emit': lambda *row: print(json.dumps(row), file=out), '__name__': 'probe'})"
)


def sysfs(root: Path, *devices: str, uverbs: bool = True, driver: str = "mlx5_core") -> Path:
    (root / driver).mkdir(parents=True)
    for number, name in enumerate(devices):
        (root / "class" / "infiniband" / name / "device").mkdir(parents=True)
        (root / "class" / "infiniband" / name / "device" / "driver").symlink_to(root / driver)
        if uverbs:
            folder = root / "class" / "infiniband_verbs" / f"uverbs{number}"
            folder.mkdir(parents=True)
            (folder / "ibdev").write_text(name + "\n")
    return root / "class"


def run(root: Path, **environment: str) -> list[list[Any]]:
    """The rows that the probe emits, in a process of its own."""
    argv = [sys.executable, "-IBc", RUN, str(SCRIPT), json.dumps({"root": str(root), "seconds": 1.5})]
    done = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=True
    )
    assert not done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libibverbs.so.1 and libmlx5.so.1 whose devices do what their names say."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    if subprocess.run(
        [compiler, "-E", "-xc", "-"], input=b"#include <infiniband/mlx5dv.h>", capture_output=True
    ).returncode:
        pytest.skip("no header infiniband/mlx5dv.h (libibverbs-dev)")
    source = Path(__file__).parent / "data" / "devx_libraries.c"
    common = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", str(source)]
    verbs = folder / "libibverbs.so.1"
    subprocess.run([*common, "-DVERBS", "-Wl,-soname,libibverbs.so.1", "-o", str(verbs)], check=True)
    subprocess.run([*common, "-o", str(folder / "libmlx5.so.1"), str(verbs)], check=True)
    return folder


def test_each_device_is_asked_for_itself(libraries: Path, tmp_path: Path) -> None:
    """One that hangs, crashes, refuses or does not open hides no other; what was opened is closed."""
    names = (
        "mlx5_granted", "mlx5_mode2", "mlx5_refused", "mlx5_refused_mute", "mlx5_closed", "mlx5_hangs",
        "mlx5_crashes", "mlx5_status",
    )  # fmt: skip
    log = tmp_path / "log"
    root = sysfs(tmp_path, *names, "mlx5_unlisted")
    rows = run(root, LD_LIBRARY_PATH=str(libraries), STUB_DEVICES=" ".join(names), STUB_LOG=str(log))
    full = [15, 0x1FC, 12, 12, 4, 8]
    assert dict(rows) == {
        "mlx5_granted": {"devx": True, "atomics": full},
        "mlx5_mode2": {"devx": True, "atomics": [3, *full[1:]]},
        "mlx5_refused": {"devx": False, "errno": "EINVAL", "plain": "", "atomics": full},
        "mlx5_refused_mute": {
            "devx": False, "errno": "EINVAL", "plain": "",
            "atomics_errno": "EOPNOTSUPP",
        },
        "mlx5_closed": {"devx": False, "errno": "EACCES", "plain": "EACCES"},
        "mlx5_hangs": {"failed": "no answer in time"},
        "mlx5_crashes": {"failed": "signal 11"},
        "mlx5_status": {"devx": True, "atomics_errno": "firmware status 0x3, syndrome 0x5a82ce"},
        "mlx5_unlisted": {"failed": "libibverbs does not list it"},
    }  # fmt: skip
    assert len(rows) == 9
    lines = log.read_text().splitlines()
    assert {line for line in lines if line.startswith("devx ")} == {
        "devx mlx5_granted", "devx mlx5_mode2", "devx mlx5_status",
    }  # fmt: skip
    opened = sorted(line.split()[1] for line in lines if not line.startswith("close "))
    assert opened == sorted(line.split()[1] for line in lines if line.startswith("close "))

    facts = devx.parse(Source({"devx.caps": {"status": "ran", "data": rows}}, root=True))
    assert facts.device("mlx5_granted").devx is True
    assert facts.device("mlx5_refused").devx is False
    assert facts.device("mlx5_refused").refusal == "EINVAL"
    assert facts.device("mlx5_granted").atomics == devx.Atomics(*full)
    for name in ("mlx5_closed", "mlx5_hangs", "mlx5_crashes", "mlx5_unlisted"):
        assert isinstance(facts.device(name).devx, Unmeasured)
        assert isinstance(facts.device(name).atomics, Unmeasured)
    with pytest.raises(Unmeasured):
        facts.device("mlx5_0")


def test_a_device_that_hangs_leaves_no_child(libraries: Path, tmp_path: Path) -> None:
    root = sysfs(tmp_path, "mlx5_hangs")
    environment = {"STUB_DEVICES": "mlx5_hangs", "STUB_LOG": str(tmp_path / "log")}
    assert run(root, LD_LIBRARY_PATH=str(libraries), **environment) == [
        ["mlx5_hangs", {"failed": "no answer in time"}]
    ]
    mark = f"LD_LIBRARY_PATH={libraries}".encode()
    left = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes() and str(tmp_path).encode() in path.read_bytes():
                left.append(path)
        except OSError:
            continue
    assert not left


def test_no_library_is_loaded_where_asking_would_load_a_module(tmp_path: Path) -> None:
    """libibverbs makes the kernel load ib_uverbs: without it the probe says so and stops."""
    root = sysfs(tmp_path, "mlx5_0", uverbs=False)
    assert run(root) == [["failed", "mlx5_0 has no uverbs device (module ib_uverbs)"]]


def test_nothing_is_asked_without_an_mlx5_device(tmp_path: Path) -> None:
    assert run(sysfs(tmp_path, "efa_0", driver="efa")) == []
    assert run(tmp_path / "nothing") == []


def test_the_probe_runs_only_where_the_kernel_has_rdma() -> None:
    (probe,) = devx.probes(CollectOptions())
    assert isinstance(probe, Script)
    assert probe.only_if_exists == "/sys/class/infiniband"
    assert devx.parse(Source({"devx.caps": {"status": "skipped"}}, root=True)).devices == {}
    with pytest.raises(Unmeasured):
        devx.parse(Source({"devx.caps": {"status": "timeout", "seconds": 6}}, root=True))


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["EINVAL", ""])
VALUE = (
    LEAF
    | st.lists(LEAF, max_size=7)
    | st.dictionaries(
        st.sampled_from(["devx", "errno", "plain", "atomics", "atomics_errno", "failed", "other"]),
        LEAF | st.lists(st.integers() | LEAF, min_size=5, max_size=7),
        max_size=5,
    )
)


@given(
    st.lists(st.lists(st.sampled_from(["mlx5_0", "failed", ""]) | VALUE, max_size=3) | VALUE, max_size=5)
    | VALUE
)
def test_garbage_gives_values_or_unmeasured(data: Any) -> None:
    try:
        facts = devx.parse(Source({"devx.caps": {"status": "ran", "data": data}}, root=True))
    except Unmeasured:
        return
    for device in facts.devices.values():
        assert isinstance(device.devx, bool | Unmeasured)
        assert bool(device.refusal) == (device.devx is False)
        if isinstance(device.atomics, devx.Atomics):
            masks = vars(device.atomics).values()
            assert all(isinstance(mask, int) and 0 <= mask <= 0xFFFF for mask in masks)


def problems(**links: str) -> list[Problem]:
    """Of the devices of h100-8hca, all refused, with links of the first two."""
    probes = {**base_probes("h200x2"), **base_probes("h100-8hca")}
    names = ("mlx5_0", "mlx5_1")
    rows = [
        [f"/sys/class/infiniband/{name}/device{tail}", target]
        for name in names
        for tail, target in links.items()
    ]
    rows += [[f"/sys/class/infiniband/{name}/device/physfn", "../x"] for name in names if "vf" in links]
    refused = {"devx": False, "errno": "EINVAL", "plain": ""}
    caps = [[name, refused] for name in names]
    entry = {"status": "ran", "rc": 0, "seconds": 0.1}
    probes |= {"rdma.links": {**entry, "data": rows}, "devx.caps": {**entry, "data": caps}}
    options = CollectOptions(env_file_text="NCCL_IB_HCA==mlx5_0,mlx5_1\n")
    node = Node("n1", Source(probes, root=True), Goal(multinode=True), options)
    return list(rdma_devx_granted(node))


def test_commands_are_for_devices_that_have_settings() -> None:
    (found,) = problems(**{"": "../../../0000:17:00.0"})
    assert found.now == ("sudo mlxconfig -d 0000:17:00.0 q UCTX_EN",)
    assert found.permanent[0] == "sudo mlxconfig -y -d 0000:17:00.0 set UCTX_EN=1"
    assert found.permanent[-1].startswith("sudo reboot")
    (unknown,) = problems()
    assert unknown.permanent[0] == "sudo mlxconfig -y -d mlx5_0 set UCTX_EN=1"
    for links in ({"": "../../../mlx5_core.sf.4"}, {"vf": "", "": "../../../0000:17:00.2"}):
        (virtual,) = problems(**links)
        assert virtual.now == () == virtual.permanent
