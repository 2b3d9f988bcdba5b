"""vLLM's collect_env text as a recording: what it tells is judged, what it lacks is unknown."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.cli import cli
from epdoctor.collect.collect_env import is_collect_env, record_from
from epdoctor.exceptions import RecordError, Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions
from epdoctor.model import Goal
from tests.reports import hostile

TEXT = (Path(__file__).parent / "data" / "collect_env.txt").read_text()


def node(text: str) -> Node:
    return Node("n", record_from(text, "c.txt").source(), Goal(), CollectOptions())


def test_what_it_tells() -> None:
    assert is_collect_env(TEXT.encode())
    environment = node(TEXT).python_env
    assert environment.packages["vllm"] == "0.33.0"
    assert environment.packages["torch"] == "2.14.0+cu130"
    assert environment.version("nvidia-nccl-cu13") == "2.27.5"
    assert environment.python_version == "3.12.3"
    assert node(TEXT).topology is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vLLM Version                 : 0.33.0", "vLLM Version: 0.33.0"),
        ("PyTorch version              : 2.14.0+cu130", "PyTorch version: 2.14.0+cu130"),
        ("[pip3] nvidia-nccl-cu13==2.27.5", "[conda] nvidia-nccl-cu13          2.27.5     pypi_0    pypi"),
        ("Collecting environment information", "> <details>\n```text\nCollecting environment information"),
    ],
)
def test_older_layouts(old: str, new: str) -> None:
    assert old in TEXT
    packages = node(TEXT.replace(old, new)).python_env.packages
    assert (packages["vllm"], packages["torch"]) == ("0.33.0", "2.14.0+cu130")
    assert packages["nvidia-nccl-cu13"] == "2.27.5"


# Lines of texts that users posted with issues of vLLM, cut to what is read: how each year's layout looks.
YEARS = {
    "2024, conda, the next line glued on": (
        ("PyTorch version: 2.1.2+cu121\nIs debug build: False\n[pip3] torch==2.1.2\n"
        "[conda] numpy 1.25.2 pypi_0 pypiROCM Version: Could not collect\nNeuron SDK Version: N/A\n"
        "vLLM Version: 0.4.0.post1\nvLLM Build Flags:\nGPU Topology:\nCould not collect\n"),
        {"torch": "2.1.2+cu121", "vllm": "0.4.0.post1", "numpy": "1.25.2"},
        0,
    ),
    "2024, indented, the table's head without its tab": (
        ("    PyTorch version: 2.5.1+cu124\n    Is debug build: False\n    [pip3] nvidia-nccl-cu12==2.21.5\n"
        "    vLLM Version: 0.6.3.post2.dev308+gb489fc3c\n    GPU Topology:\n"
        "    GPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
        "    GPU0\t X \tNV18\tSYS\t0-103\t0\t\tN/A\n    GPU1\tNV18\t X \tSYS\t0-103\t0\t\tN/A\n"
        "    NIC0\tSYS\tSYS\t X \t\t\t\t\n    \n    Legend:\n"),
        {"torch": "2.5.1+cu124", "vllm": "0.6.3.post2.dev308+gb489fc3c", "nvidia-nccl-cu12": "2.21.5"},
        2,
    ),
    "2025, a table of blanks": (
        ("PyTorch version              : 2.6.0+cu124\nIs debug build               : False\n"
        "vLLM Version                 : 0.8.5.post1\nGPU Topology:\n"
        "        GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity   GPU NUMA ID\n"
        "GPU0     X      NV12    PXB                             N/A\n"
        "GPU1    NV12     X      PXB                             N/A\nNIC0    PXB     PXB      X \n\nLegend:\n"),
        {"torch": "2.6.0+cu124", "vllm": "0.8.5.post1"},
        2,
    ),
    "2026, AMD": (
        ("PyTorch version              : 2.11.0+gitd0c8b1f\nIs debug build               : False\n"
        "vLLM Version                 : 0.23.1rc1.dev998+g88e5e2c57 (git sha: 88e5e2c57)\nGPU Topology:\n"
        "  ============ ROCm System Management Interface ============\n"
        "================ Weight between two GPUs =================\n       GPU0   GPU1\nGPU0   0      15\n"),
        {"torch": "2.11.0+gitd0c8b1f", "vllm": "0.23.1rc1.dev998+g88e5e2c57"},
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", YEARS)
def test_layouts_of_several_years(name: str, newline: str) -> None:
    text, packages, gpus = YEARS[name]
    text = text.replace("\n", newline)
    assert is_collect_env(text.encode())
    found = node(text)
    assert packages.items() <= dict(found.python_env.packages).items()
    if gpus:
        assert len(found.topology.gpus) == gpus
    else:
        with pytest.raises(Unmeasured):
            assert found.topology.gpus


def test_what_it_lacks_is_unknown() -> None:
    environment = node(TEXT).python_env
    for name in ("deep-ep", "nixl", "amd-mori"):
        with pytest.raises(Unmeasured, match="does not tell"):
            environment.version(name)
        with pytest.raises(Unmeasured, match="does not tell"):
            assert name in environment.packages
    for field in ("deepep", "deepep_owners", "libraries"):
        with pytest.raises(Unmeasured, match="does not tell"):
            getattr(environment, field)
    for fact in ("gpu", "processes", "pci"):
        with pytest.raises(Unmeasured):
            getattr(node(TEXT), fact)


def test_a_version_that_was_not_collected_is_unknown() -> None:
    text = TEXT.replace("vLLM Version                 : 0.33.0", "vLLM Version                 : N/A")
    with pytest.raises(Unmeasured):
        node(text).python_env.version("vllm")
    twice = TEXT.replace("[pip3] triton==3.6.0", "[pip3] triton==3.6.0\n[conda] triton 3.5.0 x y")
    with pytest.raises(Unmeasured):
        node(twice).python_env.version("triton")


def test_two_texts_in_one_file_are_refused() -> None:
    with pytest.raises(RecordError, match="2 collect_env texts"):
        record_from(TEXT + TEXT.replace("2.14.0+cu130", "2.13.0+cu130"), "c.txt")


def run(*words: str) -> Result:
    return CliRunner().invoke(
        cli, list(words), standalone_mode=False, env={"EPDOCTOR_NO_STATE": "1", "COLUMNS": "80"}
    )


def test_check_judges_it_and_never_says_ready(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text(TEXT)
    done = run("check", "--from", str(path))
    assert done.return_value == 3, done.exception
    words = " ".join(done.output.split())
    assert "CANNOT TELL" in words
    assert "everything else is unknown" in words
    assert "not-a-real-token" not in run("check", "--from", str(path), "-v", "--format", "json").output
    pin = run(
        "check", "--from", str(path), "--select", "cudalib.torch-nccl-pin", "--fail-on", "warning", "-v"
    )
    assert "nvidia-nccl-cu13 2.27.5 with torch 2.14.0+cu130" in " ".join(pin.output.split())


@given(
    st.lists(
        st.sampled_from(TEXT.splitlines()) | hostile | hostile.map(lambda text: f"[pip3] {text}=={text}"),
        max_size=40,
    ).map("\n".join)
)
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_record_or_an_error(text: str) -> None:
    with contextlib.suppress(RecordError):
        some = node("PyTorch version: 2.14.0\n" + text)
        for fact in ("python_env", "topology", "gpu", "environment"):
            with contextlib.suppress(Unmeasured):
                getattr(some, fact)


def test_redact_strict_is_hash_hosts() -> None:
    assert "--redact [default|strict]" in " ".join(run("collect", "--help").output.split())
