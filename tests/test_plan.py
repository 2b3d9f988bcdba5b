"""epdoctor plan: the layout it chooses, why, what it refuses, and that what it writes passes lint."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from epdoctor.cli import cli
from epdoctor.cli.plan import _write
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.launch.read import read_launch
from tests.plan_nodes import rdma_unread, recording, without_rdma

V3 = "deepseek-ai/DeepSeek-V3-0324"
KINDS = ("shell", "sbatch", "lws", "compose")
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return {number: recording(folder / f"{number}.tar.gz", number) for number in (1, 2, 4)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs epdoctor in an empty folder; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def call(*argv: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [str(word) for word in argv], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return int(result.return_value), result.output

    return call


def findings(run: Run, *argv: str) -> dict[str, str]:
    """Ids of lint's findings that are more than information, with their severity; what it cannot tell, too."""
    code, _ = run("lint", *argv, "--format", "json", "-o", "report.json")
    data: dict[str, Any] = json.loads(Path("report.json").read_text())
    assert data["exit_code"] == code
    return {
        item["id"]: item["severity"] if item["status"] == "fail" else item["status"]
        for item in data["findings"]
        if item["status"] in ("unknown", "error") or (item["status"] == "fail" and item["severity"] != "info")
    }


GOLDEN = """\
deepseek-ai/DeepSeek-V3-0324 on 1 node x 8 H200: EP 8 = TP 1 x DP 8,
  allgather_reducescatter

why
  TP 1                     latent attention: TP would keep a copy of the cache
                           on every rank
  EP 8                     experts over all 8 GPUs: 76.1 GiB of them each
  allgather_reducescatter  prefill and decode mixed: DeepEP's kernels are each
                           made for one (--disaggregate 1:1)

memory of a GPU, GiB
    76.1  routed experts: 58 layers x 256 experts x 44.1 MB / 8 ranks
    14.3  attention, dense and shared layers: 15.4 GB / TP 1, one copy a data-
          parallel rank
     3.5  embeddings: 3.7 GB / TP 1
     1.5  CUDA context and NCCL: an estimate
    95.4  of 129.2 usable: 0.92 (vLLM's default) of 140.4 GiB
    33.8  left for KV cache, activations and CUDA graphs: at most 516 thousand
          tokens a rank

! node0 stand for your nodes: addresses, interfaces and HCAs are not known

----- node0.sh
#!/bin/bash
# Written by `epdoctor plan`. Start it on node0 (head, API on port 8000).
set -eu
exec vllm serve deepseek-ai/DeepSeek-V3-0324 \\
  --enable-expert-parallel \\
  --tensor-parallel-size 1 \\
  --data-parallel-size 8 \\
  --port 8000

next       the same with -o DIR, then epdoctor lint DIR
"""


def test_one_plan_word_for_word(run: Run) -> None:
    code, output = run("plan", "--model", V3, "--nodes", "1", "--gpu", "H200")
    assert (code, output) == (0, GOLDEN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("number", "more"), [(1, ()), (2, ()), (2, ("--eplb", "32")), (4, ("--disaggregate", "1:1")), (4, ("--tp", "2"))]
)  # fmt: skip
def test_what_is_written_passes_lint(
    run: Run, recorded: dict[int, Path], kind: str, number: int, more: tuple[str, ...]
) -> None:
    source = ("--from", str(recorded[number]))
    code, output = run("plan", "--model", V3, *source, *more, "--kind", kind, "-o", "out")
    assert code == 0
    assert max(len(line) for line in output.partition("wrote ")[0].splitlines()) <= 80
    assert not findings(run, *source, "out")
    launch = read_launch(["out"])
    assert len(launch.servers) == number
    assert {server.text("tensor-parallel-size") for server in launch.servers} == {
        "2" if "--tp" in more else "1"
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "more", [("--nodes", "1"), ("--nodes", "2"), ("--nodes", "4", "--disaggregate", "1:3")]
)
def test_nodes_that_nobody_looked_at(run: Run, kind: str, more: tuple[str, ...]) -> None:
    """The portable back end, with a word about it, and no interface that nobody has seen."""
    code, output = run("plan", "--model", V3, *more, "--gpu", "H200", "--kind", kind, "-o", "out")
    assert code == 0
    assert not findings(run, "out", "--gpu-memory", "H200")
    assert "deepep" not in "".join(path.read_text() for path in Path("out").iterdir()).split("vllm serve")[-1]
    assert "are not known" in " ".join(output.split())
    if more == ("--nodes", "4", "--disaggregate", "1:3"):
        assert "the fabric between the nodes is not known" in " ".join(output.split())


def test_decode_across_nodes(run: Run, recorded: dict[int, Path]) -> None:
    """Low latency, its queue depth, its buffers in the sum, each node's own interfaces and HCAs."""
    source = ("--from", str(recorded[2]))
    code, output = run(
        "plan",
        "--model",
        V3,
        *source,
        "--workload",
        "decode",
        "--max-num-batched-tokens",
        "1024",
        "-o",
        "out",
    )
    assert code == 0
    assert "14.2  all2all buffers: 1024 tokens x 256 experts" in output
    first, second = read_launch(["out"]).servers
    assert first.text("all2all-backend") == "deepep_low_latency"
    assert first.variable("NVSHMEM_QP_DEPTH") == "2050"
    assert first.text("data-parallel-address") == first.variable("VLLM_HOST_IP") == "10.40.0.11"
    assert second.variable("VLLM_HOST_IP") == "10.40.0.12"
    assert second.on("headless")
    assert second.text("data-parallel-start-rank") == "8"
    assert first.variable("GLOO_SOCKET_IFNAME") == "eth0"
    assert first.variable("NCCL_IB_HCA").startswith("=mlx5_0,mlx5_1")
    # One engine does prefill too: said by plan, and by lint.
    assert "this engine does prefill too" in output
    assert findings(run, *source, "out") == {"launch.backend-fits-workload": "warning"}


def test_prefill_and_decode_apart(run: Run, recorded: dict[int, Path]) -> None:
    argv = ("--disaggregate", "1:1", "--max-num-batched-tokens", "512", "-o", "out")
    code, _ = run("plan", "--model", V3, "--from", str(recorded[4]), *argv)
    assert code == 0
    servers = {server.name.partition(".")[0]: server for server in read_launch(["out"]).servers}
    assert [servers[f"gpu0{n}"].text("all2all-backend") for n in (1, 2, 3, 4)] == (
        ["deepep_high_throughput"] * 2 + ["deepep_low_latency"] * 2
    )
    roles = [json.loads(servers[name].text("kv-transfer-config"))["kv_role"] for name in ("gpu01", "gpu04")]
    assert roles == ["kv_producer", "kv_consumer"]
    assert [servers[name].text("max-num-batched-tokens") for name in ("gpu01", "gpu03")] == ["", "512"]
    assert servers["gpu04"].text("data-parallel-address") == "10.40.0.13"
    assert servers["gpu04"].variable("VLLM_NIXL_SIDE_CHANNEL_HOST") == "10.40.0.14"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (without_rdma, "no active RDMA device on gpu01, gpu02"),
        (rdma_unread, "the fabric between the nodes is not known"),
    ],
)
def test_without_a_fabric_the_portable_back_end(run: Run, tmp_path: Path, edit: Any, reason: str) -> None:
    path = recording(tmp_path / "odd.tar.gz", 2, edit)
    code, output = run("plan", "--model", V3, "--from", str(path), "--workload", "decode")
    assert code == 0
    assert f"not deepep_low_latency: {reason}" in " ".join(output.split())
    assert "--all2all-backend" not in output


def test_what_does_not_fit_is_refused_with_the_numbers(run: Run) -> None:
    code, output = run("plan", "--model", V3, "--nodes", "1", "--gpu", "H100", "-o", "out")
    assert code == 1
    assert output.startswith("DOES NOT FIT")
    assert "76.1  routed experts" in output
    assert "too much: it does not fit" in output
    assert "would fit  16 of these GPUs (2 nodes, TP 1); 8 x H200" in output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--nodes", "2", "--gpu", "H200", "--tp", "3"), "does not divide a node's 8 GPUs"),
        (("--nodes", "2", "--gpu", "H200", "--eplb", "3"), "do not divide over 16 ranks"),
        (("--nodes", "3", "--gpu", "H200", "--disaggregate", "1:1"), "needs a multiple of 2 nodes"),
        (("--nodes", "64", "--gpu", "H200"), "only 256 experts a layer"),
        (("--nodes", "1", "--gpus-per-node", "1", "--gpu", "H200"), "two GPUs or more"),
        (("--nodes", "2"), "--nodes needs --gpu"),
        ((), "which nodes?"),
        (("--nodes", "2", "--gpu", "H200", "--vllm", "main"), "--vllm"),
        (("--nodes", "2", "--gpu", "H200", "--vllm", "0.10.2"), "of vLLM 0.13.0 and later"),
        (("--nodes", "2", "--gpu", "H200", "--backend", "deepep_low"), "no all2all back end"),
        (
            (
                "--nodes",
                "2",
                "--gpu",
                "H200",
                "--backend",
                "deepep_low_latency",
                "--max-num-batched-tokens",
                "9000",
            ),
            "more than 32 GiB",
        ),
        (
            ("--nodes", "2", "--gpu", "H200", "--disaggregate", "1:1", "--workload", "decode"),
            "leave --workload away",
        ),
    ],
)
def test_a_wish_that_cannot_be_is_one_sentence(run: Run, argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("?", r"\?").replace("(", r"\(")):
        run("plan", "--model", V3, *argv)


@pytest.mark.parametrize(
    "model", ["nobody/Knows", "Qwen/Qwen3.5-397B-A17B", "absent.json", "Qwen3-30B-A3B-AWQ", ""]
)
def test_a_model_that_is_not_known(run: Run, model: str) -> None:
    with pytest.raises(UsageError) as caught:
        run("plan", "--model", model, "--nodes", "1", "--gpu", "H200")
    assert "config.json" in caught.value.hint or "absent.json" in str(caught.value)


def test_a_config_file_of_the_users(run: Run) -> None:
    config = {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "torch_dtype": "bfloat16",
    }  # fmt: skip
    Path("config.json").write_text(json.dumps(config))
    code, output = run(
        "plan", "--model", "config.json", "--served-model", "ours/M", "--nodes", "1", "--gpu", "80GiB"
    )
    assert code == 0
    assert "exec vllm serve ours/M" in output
    Path("config.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="no JSON"):
        run("plan", "--model", "config.json", "--nodes", "1", "--gpu", "80GiB")


def test_nothing_is_overwritten_without_force(run: Run) -> None:
    argv = ("plan", "--model", V3, "--nodes", "1", "--gpu", "H200", "-o", "out")
    run(*argv)
    kept = Path("out/node0.sh")
    kept.write_text("mine")
    with pytest.raises(UsageError, match="nothing was written"):
        run(*argv)
    assert kept.read_text() == "mine"
    run(*argv, "--force")
    assert kept.read_text().startswith("#!/bin/bash")


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.sh").symlink_to(target)
    _write(folder, {"a.sh": "new\n"}, force=True)
    assert target.read_text() == "mine"
    assert (folder / "a.sh").read_text() == "new\n"


@pytest.mark.parametrize("prefix", ["../../etc/x", "a b", "$(id)", "-rf", "x\n#"])
def test_a_hostile_node_name_becomes_no_file(run: Run, tmp_path: Path, prefix: str) -> None:
    from epdoctor.facts import Node
    from epdoctor.facts.base import CollectOptions, Source
    from epdoctor.model import Goal
    from epdoctor.plan.nodes import node_of
    from tests.demo_cluster import healthy

    node = Node(f"{prefix}1", Source(healthy("gpu01", {"gpu01": "10.40.0.11"})), Goal(), CollectOptions())
    with pytest.raises(EpdoctorError, match="cannot be the name of a file"):
        node_of(node, "10.40.0.11")


@pytest.mark.parametrize("kind", ["shell", "sbatch"])
def test_scripts_are_good_bash(run: Run, recorded: dict[int, Path], kind: str) -> None:
    run(
        "plan", "--model", V3, "--from", str(recorded[4]), "--disaggregate", "1:1", "--eplb", "32", "--kind", kind,
        "-o", "out",
    )  # fmt: skip
    for path in Path("out").iterdir():
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_manifests_are_good_yaml_of_one_document(run: Run, recorded: dict[int, Path]) -> None:
    run("plan", "--model", V3, "--from", str(recorded[2]), "--kind", "lws", "--vllm", "0.31.0", "-o", "out")
    document = yaml.safe_load(Path("out/vllm-ep.yaml").read_text())
    template = document["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    head = template["leaderTemplate"]["spec"]["containers"][0]
    assert head["image"] == "vllm/vllm-openai:v0.31.0"
    assert head["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/ib": "1"}


@pytest.mark.parametrize(
    ("model", "gpus", "gpu"),
    [
        ("openai/gpt-oss-120b", 2, "H100"), ("moonshotai/Kimi-K2-Thinking", 8, "H200"), ("zai-org/GLM-4.5-Air", 8, "H100"),
        ("deepseek-ai/DeepSeek-V4-Flash", 8, "H100"), ("MiniMaxAI/MiniMax-M2", 8, "H100"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 8, "H100"), ("Qwen/Qwen3-235B-A22B-FP8", 8, "H100"),
        ("deepseek-ai/DeepSeek-V2-Lite", 2, "80GiB"), ("mistralai/Mixtral-8x22B-Instruct-v0.1", 8, "H100"),
    ],
)  # fmt: skip
def test_models_of_the_table_on_one_node(run: Run, model: str, gpus: int, gpu: str) -> None:
    argv = ("--nodes", "1", "--gpus-per-node", str(gpus), "--gpu", gpu)
    code, output = run("plan", "--model", model, *argv, "-o", "out")
    assert code == 0, output
    assert not findings(run, "out", "--gpu-memory", gpu)


def test_lint_with_the_memory_of_the_gpu(run: Run) -> None:
    """DeepSeek-V3 on eight: not with 80 GiB each, well with an H200's; without a word about memory no check."""
    Path("serve.sh").write_text(
        f"#!/bin/bash\nvllm serve {V3} --enable-expert-parallel --data-parallel-size 8\n"
    )
    assert findings(run, "serve.sh", "--gpu-memory", "80GiB") == {"launch.memory-fits": "error"}
    assert not findings(run, "serve.sh", "--gpu-memory", "H200")
    assert not findings(run, "serve.sh")
    Path("serve.sh").write_text(
        "#!/bin/bash\nvllm serve ours/private --enable-expert-parallel --data-parallel-size 8\n"
    )
    assert findings(run, "serve.sh", "--gpu-memory", "80GiB") == {
        "launch.memory-fits": "unknown", "launch.memory-not-tight": "unknown",
    }  # fmt: skip
