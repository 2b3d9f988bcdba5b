"""Live servers out of the nodes' records."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.launch.running import read_running
from epdoctor.model import Goal


def serving(pid: int, *command: str, **environ: str) -> dict[str, Any]:
    return {
        "pid": pid, "ppid": 1, "role": "serve", "comm": "vllm", "cmdline": list(command), "environ": environ,
        "environ_state": "read",
    }  # fmt: skip


def node(name: str, *processes: dict[str, Any], done: bool = True) -> Node:
    data: list[list[Any]] = [["process", process] for process in processes]
    data += [["vllm_count", len(processes)]] if done else []
    return Node(name, Source({"processes.scan": {"status": "ran", "data": data}}), Goal(), CollectOptions())


def test_each_process_with_its_options_variables_and_libraries() -> None:
    worker = {
        "pid": 12, "ppid": 11, "role": "worker", "comm": "VLLM::Worker", "environ_state": "overwritten",
        "libraries": [
            ["/opt/venv/nvidia/nccl/lib/libnccl.so.2", {"NCCL_MAJOR": "2", "NCCL_MINOR": "30", "NCCL_PATCH": "7"}],
            ["/opt/nvshmem/lib/libnvshmem_host.so.3.4.5", {}], ["/usr/lib/libcuda.so.1", {}],
        ],
    }  # fmt: skip
    found = read_running(
        {
            "gpu01": node(
                "gpu01",
                serving(11, "/opt/venv/bin/python3", "/opt/venv/bin/vllm", "serve", "m", "-dp", "16", NCCL_DEBUG="WARN"),
                worker,
            ),
            "gpu02": node("gpu02", serving(21, "python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m")),
            "gpu03": node("gpu03"),
            "gpu04": node("gpu04", done=False),
        }
    )  # fmt: skip
    assert found.live
    first, second = found.servers
    assert (first.kind, first.node, first.name, first.number("data-parallel-size")) == (
        "running", "gpu01", "gpu01 pid 11", 16,
    )  # fmt: skip
    assert first.libraries == {
        "libnccl.so.2": "2.30.7", "libnvshmem_host.so.3": "/opt/nvshmem/lib/libnvshmem_host.so.3.4.5",
    }  # fmt: skip
    assert first.variable("NCCL_DEBUG") == "WARN"
    assert second.model is not None
    assert second.model.text == "m"
    assert [problem.location and problem.location.path for problem in found.trouble] == ["gpu04"]
    assert set(found.nodes) == {"gpu01", "gpu02", "gpu03", "gpu04"}


def test_an_environment_that_may_not_be_read_is_trouble() -> None:
    process = {**serving(11, "vllm", "serve", "m"), "environ_state": "denied", "environ": None}
    found = read_running({"gpu01": node("gpu01", process)})
    assert "denied" in found.trouble[0].found
    assert found.servers[0].environment == {}


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(
        st.lists(
            st.one_of(
                st.text(max_size=8),
                st.dictionaries(
                    st.sampled_from(["pid", "ppid", "role", "cmdline", "environ", "environ_state", "libraries"]),
                    st.one_of(
                        st.integers(), st.text(max_size=6), st.sampled_from(["serve", "read"]),
                        st.lists(st.text(max_size=8)), st.none(),
                    ),
                ),
            ),
            max_size=3,
        ),
        max_size=4,
    )
)  # fmt: skip
def test_any_record(data: list[Any]) -> None:
    rows = [["process", *row] for row in data] + [["vllm_count", 1]]
    probes = {"processes.scan": {"status": "ran", "data": rows}}
    read_running({"n": Node("n", Source(probes), Goal(), CollectOptions())})
