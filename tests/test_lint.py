"""epdoctor lint on launches as people write them: what it finds, where it points, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.catalog import load_checks
from epdoctor.cli import cli
from epdoctor.engine import Engine
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.launch.read import read_launch
from epdoctor.model import Goal, Status
from tests.launch_texts import COMMENTED, EPLB, HEAD, PREFILL_DECODE, SECOND, SINGLE, wide_ep

Lint = Callable[..., tuple[int, str]]


@pytest.fixture
def lint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lint:
    """Runs `epdoctor lint` in a folder with the given files; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def call(*argv: str, **files: str) -> tuple[int, str]:
        for name, text in files.items():
            Path(name.replace("_sh", ".sh").replace("_yaml", ".yaml")).write_text(text)
        result = CliRunner().invoke(cli, ["lint", *argv], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return int(result.return_value), result.output

    return call


def ids(lint: Lint, *argv: str, **files: str) -> dict[str, str]:
    """Failed checks of severity warning or error, with the severity, from the JSON report."""
    code, _ = lint(*argv, "--format", "json", "-o", "report.json", **files)
    data: dict[str, Any] = json.loads(Path("report.json").read_text())
    assert data["exit_code"] == code
    return {
        finding["id"]: finding["severity"]
        for finding in data["findings"]
        if finding["status"] == "fail" and finding["severity"] != "info"
    }


def test_guide_of_vllm_single_node_is_clean(lint: Lint) -> None:
    assert not ids(lint, "serve.sh", serve_sh=SINGLE)


def test_guide_of_vllm_two_nodes_has_only_the_mixed_workload(lint: Lint) -> None:
    found = ids(lint, "node0.sh", "node1.sh", node0_sh=HEAD, node1_sh=SECOND)
    assert found == {"launch.backend-fits-workload": "warning"}


def test_guide_of_vllm_in_one_file(lint: Lint) -> None:
    found = ids(lint, "both.sh", both_sh=HEAD + "\n" + SECOND)
    assert found == {"launch.backend-fits-workload": "warning"}


def test_guide_of_vllm_eplb_example_does_not_divide(lint: Lint) -> None:
    code, output = lint("serve.sh", serve_sh=EPLB)
    assert code == 1
    assert "serve.sh:6:18: 256 experts + 2 redundant = 258" in " ".join(output.split())
    assert "num_redundant_experts 0 or 8" in output


def test_guide_of_vllm_disaggregated_is_clean(lint: Lint) -> None:
    prefill, decode = PREFILL_DECODE
    assert not ids(lint, "prefill.sh", "decode.sh", prefill_sh=prefill, decode_sh=decode)


def test_comments_behind_backslashes_are_read_as_meant(lint: Lint) -> None:
    """As vLLM's guide prints them; a shell ends the command there, which is said once."""
    found = ids(lint, "serve.sh", serve_sh=COMMENTED)
    assert set(found) <= {"launch.was-read"}


def test_one_rank_with_another_eplb_flag(lint: Lint) -> None:
    """vllm-project/vllm#26187."""
    code, output = lint(
        "node0.sh", "node1.sh", node0_sh=HEAD.replace("8 \\\n", "8 --enable-eplb \\\n", 1), node1_sh=SECOND
    )
    assert code == 1
    assert "launch.flags-equal" in output
    assert "--enable-eplb is" in output
    assert "${EDITOR:-vi} +" in output.splitlines()[-1]


def test_file_and_line_come_first(lint: Lint) -> None:
    _, output = lint(
        "serve.sh", serve_sh=SINGLE.replace("--enable-expert-parallel", "--enable-expert-paralel")
    )
    assert "found     serve.sh:4:3: --enable-expert-paralel: vLLM has no such option" in output


def test_second_head(lint: Lint) -> None:
    found = ids(lint, "node0.sh", "node1.sh", node0_sh=HEAD, node1_sh=HEAD)
    assert {"launch.one-head", "launch.ranks-covered-once"} <= set(found)


def test_wide_ep_manifests_give_the_known_mistakes(lint: Lint) -> None:
    """Four names and values that public wide-EP guides carry, and nothing else."""
    found = ids(lint, "wide-ep.yaml", **{"wide-ep_yaml": wide_ep()})
    assert found == {
        "launch.no-removed-variables": "warning",
        "launch.variables-spelt": "warning",
        "launch.variables-effective": "warning",
    }


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ("size: 2", "size: 4", ""),
        ("nvidia.com/gpu: '8'", "nvidia.com/gpu: '4'", "launch.pod-gpus-enough"),
        (", rdma/ib: '1'", "", "launch.pod-has-rdma"),
        ("{capabilities: {add: [IPC_LOCK]}}", "{}", "launch.pod-may-lock-memory"),
        ("deepep_low_latency", "pplx", "launch.backend-exists"),
        ("kv_consumer", "kv_decode", "launch.kv-config-valid"),
        ("failureThreshold: 2700", "failureThreshold: 30", "launch.pod-probes-patient"),
        ("{mountPath: /dev/shm, name: dshm}", "{mountPath: /tmp, name: dshm}", "launch.pod-shm-enough"),
        ("$((LWS_GROUP_SIZE * DP_SIZE_LOCAL))", "32", "launch.pod-group-covers-ranks"),
        ("--max-num-batched-tokens 256", "--max-num-batched-tokens 2048", "launch.queue-depth-fits-tokens"),
        ("name: wide-ep-proxy", "name: vllm", "launch.service-name-harmless"),
    ],
)
def test_planted_in_a_manifest(lint: Lint, old: str, new: str, check: str) -> None:
    text = wide_ep()
    assert old in text
    before = ids(lint, "w.yaml", w_yaml=text)
    after = ids(lint, "w.yaml", w_yaml=text.replace(old, new))
    if check:
        assert check in after
        assert check not in before
    else:
        assert after == before


def test_unresolved_values_are_named_and_not_guessed(lint: Lint) -> None:
    code, output = lint(
        "serve.sh", serve_sh="vllm serve $MODEL --enable-expert-parallel --data-parallel-size $DP\n"
    )
    assert code == 3
    assert "CANNOT TELL" in output
    assert "serve.sh:1:" in output
    assert "$DP (not resolved)" in " ".join(output.split())
    # each reason once, however many checks need the value
    assert output.count("$DP") <= 2


def test_env_file_fills_them(lint: Lint) -> None:
    Path("cluster.env").write_text("MODEL=deepseek-ai/DeepSeek-V3-0324\nDP=8\n")
    code, _ = lint(
        "serve.sh", "--env-file", "cluster.env",
        serve_sh="vllm serve $MODEL --enable-expert-parallel --data-parallel-size $DP\n",
    )  # fmt: skip
    assert code == 0


def test_a_literal_command(lint: Lint) -> None:
    code, output = lint("--", "vllm", "serve", "m", "--enable-eplb", "--data-parallel-size", "8")
    assert code == 1
    assert "launch.eplb-enabled" in output


def test_vllm_version_decides(lint: Lint) -> None:
    text = SINGLE.replace("vllm serve", "VLLM_ALL2ALL_BACKEND=deepep_low_latency vllm serve")
    assert "launch.no-removed-variables" in ids(lint, "serve.sh", serve_sh=text)
    assert "launch.no-removed-variables" not in ids(lint, "serve.sh", "--vllm", "0.11.0", serve_sh=text)


def test_fail_on_warning(lint: Lint) -> None:
    files = {"node0_sh": HEAD, "node1_sh": SECOND}
    assert lint("node0.sh", "node1.sh", **files)[0] == 0
    assert lint("node0.sh", "node1.sh", "--fail-on", "warning", **files)[0] == 1


def test_select_and_ignore(lint: Lint) -> None:
    assert ids(lint, "serve.sh", "--ignore", "launch.eplb-experts-divide", serve_sh=EPLB) == {}
    assert set(ids(lint, "serve.sh", "--select", "launch.eplb-experts-divide", serve_sh=EPLB)) == {
        "launch.eplb-experts-divide"
    }


def test_model_config(lint: Lint) -> None:
    Path("config.json").write_text('{"hidden_size": 4096, "num_experts": 130, "num_experts_per_tok": 8}')
    found = ids(lint, "serve.sh", "--model-config", "config.json", serve_sh=EPLB)
    assert "launch.eplb-experts-divide" in found
    Path("config.json").write_text("[]")
    with pytest.raises(UsageError, match="not an object"):
        lint("serve.sh", "--model-config", "config.json")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no launch"),
        (["--running", "x.sh"], "live processes"),
        (["nowhere.sh"], "nowhere.sh"),
        (["--"], "nothing stands behind"),
        (["x.sh", "--select", "gpu"], "none of a launch"),
        (["x.sh", "--from", "a", "-i", "b"], "recording"),
    ],
)
def test_usage_errors(lint: Lint, argv: list[str], message: str) -> None:
    Path("x.sh").write_text(SINGLE)
    with pytest.raises(EpdoctorError, match=message):
        lint(*argv)


def recording(folder: Path, launches: dict[str, list[str]]) -> Path:
    """A recording of nodes on which these command lines run."""
    base = json.loads((Path(__file__).parent / "records" / "8xh200-ib.json").read_text())
    case = Path(__file__).parent / "cases" / "vllm.workers-agree-on-node" / "same.pass.yaml"
    row = yaml.safe_load(case.read_text())["edit"]["processes.scan"]["add"][0][1]
    folder.mkdir()
    for name, argv in launches.items():
        node = json.loads(json.dumps(base))
        scan = node["probes"]["processes.scan"]
        process = {
            **row,
            "cmdline": ["python3", "/opt/venv/bin/vllm", *argv],
            "environ": {"GLOO_SOCKET_IFNAME": "eth0"},
        }
        kept = [item for item in scan["data"] if item[0] != "process"]
        node["probes"]["processes.scan"] = {**scan, "data": [*kept, ["process", process]]}
        node["node"] = name
        (folder / f"{name}.json").write_text(json.dumps(node))
    return folder


def words(script: str) -> list[str]:
    """Command line of a script of tests/launch_texts.py, from `serve` on."""
    return script.replace("\\\n", " ").split("vllm serve", 1)[1].split()


def test_running_names_the_rank_that_differs(lint: Lint, tmp_path: Path) -> None:
    head, second = ["serve", *words(HEAD)], ["serve", *words(SECOND)]
    where = recording(tmp_path / "r", {"gpu01": [*head, "--enable-eplb"], "gpu02": second})
    code, output = lint("--running", "--from", str(where))
    assert code == 1
    assert "launch.flags-equal" in output
    assert "gpu01 pid 4711" in output
    assert "2 live servers" in output


def test_what_to_type_where_a_live_process_does_not_tell(lint: Lint, tmp_path: Path) -> None:
    head = ["serve", *words(HEAD), "--data-parallel-size", "many"]
    where = recording(tmp_path / "r", {"gpu01": head})
    _, output = lint("--running", "--from", str(where), "--select", "launch.ranks-covered-once")
    assert "CANNOT TELL" in output
    assert "--env-file" not in output


def test_what_to_type_for_a_patch(lint: Lint) -> None:
    patch = """apiVersion: apps/v1
kind: Deployment
metadata: {name: decode}
spec:
  template:
    spec:
      containers:
      - name: modelserver
        command: [sh, -c, "vllm serve m --tensor-parallel-size 4"]
"""
    code, output = lint("patch.yaml", patch_yaml=patch)
    assert code == 3
    assert "next       kubectl kustomize FOLDER | epdoctor lint -" in output


def test_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "epdoctor", "lint", "-", "--no-state"],
        input="vllm serve m --enable-expert-paralel\n",
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "/dev/stdin:1:14: --enable-expert-paralel" in done.stdout
    assert "EDITOR" not in done.stdout.rpartition("next ")[2]


def test_against_recorded_nodes(lint: Lint, tmp_path: Path) -> None:
    where = recording(tmp_path / "r", {"gpu01": ["serve", "other"]})
    code, output = lint("gpu01.sh", "--from", str(where), gpu01_sh=SINGLE.replace("size 8", "size 16"))
    assert code == 1
    assert "16 ranks" in output
    assert "on 8 GPUs (gpu01)" in " ".join(output.split())


_WORDS = st.lists(
    st.sampled_from(
        [
            "vllm serve m", "--data-parallel-size", "8", "-1", "99999999", "--data-parallel-size-local", "0", "--headless",
            "--eplb-config", "'{'", "'{\"a\": [1]}'", "--eplb-config.x.y", "--kv-transfer-config", "'[]'", "'null'",
            "--nnodes", "--node-rank", "--tensor-parallel-size", "0", "--data-parallel-rank", "$X", "--enable-eplb",
            "--enable-expert-parallel", "--all2all-backend", "deepep_low_latency", "--compilation-config", "'{}'", "\n",
            "--data-parallel-start-rank", "--port", "export NVSHMEM_QP_DEPTH=x;", "--data-parallel-external-lb",
            "'{\"kv_connector\": {}, \"kv_role\": 3, \"kv_connector_extra_config\": {\"connectors\": 7}}'",
            "'{\"num_redundant_experts\": null}'", "--pipeline-parallel-size", "--master-addr", "localhost",
        ]
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(_WORDS, st.text(max_size=30))
def test_no_launch_breaks_a_rule(parts: list[str], garbage: str) -> None:
    """Whatever a file holds: a verdict, never a bug."""
    import tempfile

    checks = {name: check for name, check in load_checks().items() if check.scope == "launch"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.sh")
        path.write_text("vllm serve a " + " ".join(parts) + "\n" + garbage, errors="replace")
        try:
            launch = read_launch([str(path)])
        except UsageError:
            return
    bugs = [f.traceback for f in Engine(checks, Goal()).judge_launch(launch) if f.status is Status.ERROR]
    assert not bugs, bugs[0]
