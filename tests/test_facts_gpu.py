"""GPU facts: NVML and nvidia-smi agree, real outputs are read, and garbage gives Unmeasured at worst."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import gpu, gpu_smi
from epdoctor.facts.base import CollectOptions, Source, require
from epdoctor.facts.gpu_model import Gpu

RAW = Path(__file__).parent / "records" / "raw" / "gpu"


def ran(**entry: Any) -> dict[str, Any]:
    return {"status": "ran", "rc": 0, **entry}


def nvml(name: str) -> Source:
    rows = json.loads((RAW / "h200x2" / name).read_text())
    return Source({"gpu.nvml": ran(data=rows), "pci.devices": ran(data=[])})


def smi(smi_q: str, nvlink: str) -> Source:
    return Source(
        {
            "gpu.nvml": {"status": "timeout", "seconds": 15.0},
            "gpu.smi-q": ran(stdout=smi_q, stderr=""),
            "gpu.smi-nvlink": ran(stdout=nvlink, stderr=""),
            "pci.devices": ran(data=[]),
        }
    )


def recorded_smi(machine: str, smi_q: str = "smi-q.txt") -> Source:
    folder = RAW / machine
    return smi((folder / smi_q).read_text(), (folder / "nvlink.txt").read_text())


def test_nvml_and_nvidia_smi_agree_on_a_real_machine() -> None:
    by_nvml, by_smi = gpu.parse(nvml("nvml.json")), gpu.parse(recorded_smi("h200x2"))
    assert by_nvml.driver_version == by_smi.driver_version == "580.159.04"
    assert by_nvml.cuda_driver_version == by_smi.cuda_driver_version == (13, 0)
    assert (by_nvml.read_by, by_smi.read_by) == ("NVML", "nvidia-smi")
    assert len(by_nvml.gpus) == len(by_smi.gpus) == 2
    for one, other in zip(by_nvml.gpus, by_smi.gpus, strict=True):
        for field in dataclasses.fields(Gpu):
            left, right = getattr(one, field.name), getattr(other, field.name)
            if field.name == "nvlinks":
                key = [(link.index, link.active, link.speed_mbps) for link in require(left)]
                assert key == [(link.index, link.active, link.speed_mbps) for link in require(right)]
                assert len(key) == 18
            else:
                assert left == right, field.name


def test_a_busy_gpu_tells_its_process() -> None:
    first = gpu.parse(nvml("nvml-busy.json")).gpus[0]
    assert [(process.pid, process.memory_bytes) for process in require(first.processes)] == [(556, 518 << 20)]
    assert not first.idle
    _, sections = gpu_smi.sections(
        "GPU 00000000:00:06.0\n" + (RAW / "h200x2" / "smi-q-processes.txt").read_text().partition("--")[0]
    )
    by_smi = gpu_smi.gpu(0, *sections[0], ())
    assert by_smi.processes == first.processes


def test_nvlink_switched_off_is_no_link_and_no_fabric() -> None:
    text = (RAW / "h100x1" / "smi_q.txt").read_text()
    found = gpu.parse(smi(text, "")).gpus[0]
    assert found.nvlinks == ()
    assert require(found.fabric).state == "not supported"
    assert found.name == "NVIDIA H100 80GB HBM3"


def test_no_gpu_is_known_without_the_driver() -> None:
    card = "/sys/bus/pci/devices/0000:00:03.0/"
    rows = [[card + "vendor", "0x1af4\n"], [card + "class", "0x020000\n"]]
    facts = gpu.parse(Source({"pci.devices": ran(data=rows), "gpu.nvml": {"status": "skipped"}}))
    assert not facts.present
    assert facts.gpus == ()


def test_a_failure_of_nvml_is_kept() -> None:
    error = {"call": "nvmlInit", "code": 18, "text": "Driver/library version mismatch"}
    facts = gpu.parse(Source({"pci.devices": ran(data=[]), "gpu.nvml": ran(data=[["error", error]])}))
    assert facts.failure == "nvmlInit: Driver/library version mismatch"
    assert isinstance(facts.listed, Unmeasured)


def test_inactive_links_of_nvidia_smi() -> None:
    text = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n"
    first, second = gpu_smi.links(text)[0]
    assert (first.active, first.speed_mbps) == (True, 26562)
    assert not second.active


def test_every_probe_that_can_load_modules_is_guarded() -> None:
    for probe in gpu.probes(CollectOptions()):
        assert probe.only_if_exists == "/proc/driver/nvidia/version"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    [name for (name,) in [(field.name,) for field in dataclasses.fields(Gpu)]]
) | st.sampled_from(
    [
        "links",
        "fabric",
        "errors",
        "ecc",
        "ecc_volatile",
        "remapped_rows",
        "mig",
        "persistence",
        "event_reasons",
    ]
)
rows = st.lists(
    st.tuples(st.sampled_from(["count", "gpu.0", "gpu.1", "p2p", "error", "driver_version"]), json_values)
    | st.tuples(st.just("gpu.0"), st.dictionaries(fields, json_values, max_size=6))
    | st.tuples(st.just("count"), st.integers(0, 3)),
    max_size=8,
).map(lambda found: [list(row) for row in found])


def read_everything(source: Source) -> None:
    """Touch each field; only Unmeasured may rise."""
    try:
        facts = gpu.parse(source)
        for one in facts.gpus:
            for name in ("active_nvlinks", "idle", "hardware_slowdowns", "label"):
                try:
                    getattr(one, name)
                except Unmeasured:
                    continue
    except Unmeasured:
        return


@given(rows)
def test_garbage_rows_give_values_or_unmeasured(data: list[Any]) -> None:
    read_everything(Source({"gpu.nvml": ran(data=data), "pci.devices": ran(data=[])}))


LINES = (RAW / "h200x2" / "smi-q.txt").read_text().splitlines()


@settings(max_examples=60)
@given(st.lists(st.sampled_from(LINES) | st.text(max_size=40), max_size=60), st.text(max_size=80))
def test_garbage_text_of_nvidia_smi(lines: list[str], nvlink: str) -> None:
    read_everything(smi("Attached GPUs : 1\n" + "\n".join(lines), nvlink))


@pytest.mark.parametrize("text", ["", "NVIDIA-SMI has failed", "{}", "\x00" * 50])
def test_text_that_is_no_answer_is_unmeasured(text: str) -> None:
    facts = gpu.parse(smi(text, ""))
    assert isinstance(facts.listed, Unmeasured)


def test_peer_matrix_of_nvidia_smi() -> None:
    text = (RAW / "h200x2" / "topo_p2p.txt").read_text()
    assert gpu_smi.peers(text) == {(0, 1): "OK"}
    changed = " \t\x1b[4mGPU0\tGPU1\tGPU2\t\x1b[0m\n GPU0\tX\tOK\tCNS\t\n GPU1\tOK\tX\tU\t\n GPU2\tCNS\tU\tX\t\n\nLegend:\n"
    assert gpu_smi.peers(changed) == {(0, 1): "OK", (0, 2): "CNS", (1, 2): "unknown"}
    assert gpu_smi.peers("no matrix") == {}
