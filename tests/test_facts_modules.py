"""Kernel module facts: real /proc texts, modprobe.d as modprobe reads it, and garbage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import modules
from epdoctor.facts.base import FileSet, Source, require
from epdoctor.facts.modprobe import parse_load, parse_options, registry_dwords

RAW = Path(__file__).parent / "records" / "raw" / "gpu"


def ran(data: Any) -> dict[str, Any]:
    return {"status": "ran", "rc": 0, "data": data}


def recorded(path: str) -> str:
    """Text of one file in proc_nv.txt."""
    text = (RAW / "h200x2" / "proc_nv.txt").read_text()
    return text.partition(f"== {path}\n")[2].partition("\n== ")[0] + "\n"


def node(**data: Any) -> Source:
    """Probe results by name; `_` in a keyword stands for `.`."""
    entries = {"modules_loaded": [["/proc/modules", ""]], "modules_nvidia": [], **data}
    return Source({name.replace("_", ".", 1): ran(rows) for name, rows in entries.items()})


def test_real_driver_files() -> None:
    files = [[path, recorded(path)] for path in ("/proc/driver/nvidia/version", "/proc/driver/nvidia/params")]
    found = modules.parse(node(modules_nvidia=files))
    assert found.driver_loaded
    assert found.nvidia_flavour == "open"
    assert found.nvidia_version_tuple == (580, 159, 4)
    assert require(found.nvidia_params)["NvLinkDisable"] == "0"
    assert not found.stream_mem_ops
    assert not found.peer_mapping_override


def test_proprietary_flavour() -> None:
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb  3 06:54:48 UTC 2024\n"
    assert modules.parse_nvidia_version(text) == ("535.161.08", "proprietary")


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("PeerMappingOverride=1;", True),
        ("a=1;PeerMappingOverride=1", True),
        ("peermappingoverride=1", True),
        ("PeerMappingOverride=1;PeerMappingOverride=0", False),
        ("XPeerMappingOverride=1", False),
        ("", False),
    ],
)
def test_registry_dwords(text: str, live: bool) -> None:
    assert (registry_dwords(text).get("peermappingoverride") == "1") is live


def test_a_module_may_be_built_in() -> None:
    found = modules.parse(node(modules_sysfs=[["/sys/module/mlx5_core/parameters/prof_sel", "2\n"]]))
    assert found.has("mlx5_core")
    assert not found.has("nvidia_peermem")


def test_dashes_and_underscores_are_one() -> None:
    found = modules.parse(node(modules_loaded=[["/proc/modules", "nvidia_peermem 16384 0 - Live 0x0\n"]]))
    assert found.has("nvidia-peermem")


def test_modprobe_order_and_merging() -> None:
    files = FileSet(
        {
            "/usr/lib/modprobe.d/nvidia.conf": "options nvidia NVreg_Hidden=1\n",
            "/etc/modprobe.d/nvidia.conf": (
                '# options nvidia NVreg_No=1\noptions nvidia NVreg_A=1 \\\n NVreg_B="x y"\n'
            ),
            "/run/modprobe.d/zz.conf": "options nvidia NVreg_A=2\noptions nvidia-drm modeset=1\n",
        },
        {},
    )
    found = parse_options(files)
    assert [(line.path, line.line, dict(line.parameters)) for line in found] == [
        ("/etc/modprobe.d/nvidia.conf", 2, {"NVreg_A": "1", "NVreg_B": "x y"}),
        ("/run/modprobe.d/zz.conf", 1, {"NVreg_A": "2"}),
        ("/run/modprobe.d/zz.conf", 2, {"modeset": "1"}),
    ]
    assert found[2].module == "nvidia_drm"


def test_modules_loaded_at_boot() -> None:
    files = FileSet(
        {"/etc/modules-load.d/a.conf": "# x\n; y\nnvidia-peermem\n", "/etc/modules": "gdrdrv\n"}, {}
    )
    assert parse_load(files) == {
        "nvidia_peermem": "/etc/modules-load.d/a.conf",
        "gdrdrv": "/etc/modules",
    }


def test_unread_modprobe_is_unmeasured_on_use_only() -> None:
    found = modules.parse(node())
    with pytest.raises(Unmeasured):
        found.written_parameters("nvidia")


lines = st.text(max_size=40) | st.sampled_from(
    [
        "options",
        "options nvidia",
        'options nvidia a="',
        "nvidia 1 2",
        "NVRM version: 1.",
        'RegistryDwords: "a=;;="',
        "x\\",
    ]
)
paths = st.sampled_from(
    ["/proc/modules", "/etc/modprobe.d/a.conf", "/sys/module/nvidia/version", "/proc/driver/nvidia/version",
     "/proc/driver/nvidia/params", "/sys/module//", "/sys/kernel/mm/memory_peers/x/version", "/etc/modules"]
) | st.text(max_size=12)  # fmt: skip
rows = st.lists(st.tuples(paths, st.lists(lines, max_size=4).map("\n".join)).map(list), max_size=5)


@given(st.dictionaries(st.sampled_from(["loaded", "sysfs", "modprobe", "load", "nvidia"]), rows, min_size=3))
def test_garbage_gives_values_or_unmeasured(data: dict[str, Any]) -> None:
    try:
        found = modules.parse(Source({f"modules.{name}": ran(value) for name, value in data.items()}))
        found.written_parameters("nvidia")
        found.has("gdrdrv")
        assert found.stream_mem_ops in (True, False)
        assert found.peer_mapping_override in (True, False)
        assert found.nvidia_version_tuple
    except Unmeasured:
        return
