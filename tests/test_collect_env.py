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
