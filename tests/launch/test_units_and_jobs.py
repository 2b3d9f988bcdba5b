"""systemd units, Slurm jobs, environment files and a literal command."""

from __future__ import annotations

from pathlib import Path

import pytest

from epdoctor.exceptions import UsageError
from epdoctor.launch.read import read_launch
from tests.launch.files import one, read

JOB = """
#!/bin/bash
#SBATCH --job-name=ep
#SBATCH -N 4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8   # all of them
nodes=( $(scontrol show hostnames "$SLURM_JOB_NODELIST") )
head=${nodes[0]}
head_ip=$(srun -N1 -n1 -w "$head" hostname --ip-address)
DP=$((SLURM_NNODES * 8))
srun --nodes=1 --ntasks=1 -w "$head" vllm serve m -dp $DP -dpl 8 -dpa $head_ip &
for ((i = 1; i < SLURM_NNODES; i++)); do
  srun -N1 -n1 -w "${nodes[$i]}" vllm serve m --headless -dp $DP -dpl 8 -dpr $((i * 8)) -dpa "$head_ip" &
done
wait
"""


def test_a_job_with_a_head_and_workers(tmp_path: Path) -> None:
    found = read(tmp_path, JOB, name="job.sbatch")
    assert not found.trouble
    assert [server.kind for server in found.servers] == ["sbatch"] * 4
    assert [server.number("data-parallel-start-rank") for server in found.servers] == [None, 8, 16, 24]
    assert {server.text("data-parallel-size") for server in found.servers} == {"32"}
    assert len({server.node for server in found.servers}) == 4
    assert all(server.options["data-parallel-address"].value.runtime for server in found.servers)
    assert [server.visible_gpus for server in found.servers] == [8] * 4
    assert [len(servers) for servers in found.deployments()] == [4]


def test_tasks_see_their_own_number_only_inside_their_own_shell(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n"
        "srun bash -c 'vllm serve m --node-rank $SLURM_NODEID --nnodes $SLURM_NNODES'\n"
        "srun vllm serve n --node-rank $SLURM_NODEID\n",
        name="job.sh",
    )
    assert [server.text("node-rank") for server in found.servers] == ["0", "1", "0", "0"]
    assert [server.index for server in found.servers] == [0, 1, 0, 1]
    first, second = found.deployments()
    assert len(first) == len(second) == 2


def test_srun_with_a_container_and_an_export_list(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        "#!/bin/bash\n#SBATCH -N 1\nexport A=1 B=2\n"
        "srun --export=A,C=3 --container-image=vllm/vllm-openai:v0.33.0 vllm serve m\n",
        name="job.sh",
    )
    assert [name for name in server.environment if not name.startswith("SLURM_")] == ["A", "C"]
    assert server.vllm_version == "0.33.0"


def test_sbatch_in_a_submitting_script(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "sbatch --nodes=2 <<'EOF'\n#!/bin/bash\n#SBATCH --ntasks-per-node=1\n"
        "srun bash -c 'vllm serve m --node-rank $SLURM_PROCID'\nEOF\n",
    )
    assert [server.text("node-rank") for server in found.servers] == ["0", "1"]


UNIT = """
[Unit]
Description=vLLM

[Service]
Environment="A=1 2" 'B=3'
Environment=TP=8
EnvironmentFile=-/etc/vllm/ep.env
LimitMEMLOCK=infinity
ExecStartPre=/usr/bin/true
ExecStart=/opt/venv/bin/vllm serve deepseek-ai/DeepSeek-V3 \\
    --tensor-parallel-size ${TP} \\
    # systemd skips this line
    --data-parallel-address %H $OPTS \\
    --eplb-config '{"window_size": 1000}' --served-model-name "a b"
"""


def test_a_unit(tmp_path: Path) -> None:
    (tmp_path / "ep.env").write_text("# comment\nNCCL_IB_HCA='mlx5_0'\nexport X=$Y\n")
    (tmp_path / "vllm.service").write_text(UNIT.lstrip())
    found = read_launch([str(tmp_path / "vllm.service"), str(tmp_path / "ep.env")])
    (server,) = found.servers
    assert (server.kind, server.number("tensor-parallel-size"), server.text("served-model-name")) == (
        "systemd", 8, "a b",
    )  # fmt: skip
    assert server.text("eplb-config") == '{"window_size": 1000}'
    assert server.options["data-parallel-address"].value.runtime == "host name"
    assert server.options["eplb-config"].location.line == 14
    assert [word.text for word in server.stray] == ["$OPTS"]
    assert {name: value.text for name, value in server.environment.items()} == {
        "A": "1 2", "B": "3", "TP": "8", "NCCL_IB_HCA": "mlx5_0", "X": "$Y",
    }  # fmt: skip
    assert server.pod is None
    assert server.locked_memory is not None
    assert server.locked_memory.text == "infinity"


def test_a_unit_that_starts_a_shell(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        "[Service]\nExecStart=\nExecStart=-/bin/bash -c 'exec vllm serve m -tp $$TP'\nEnvironment=TP=4\n",
        name="vllm.service",
    )
    assert server.text("tensor-parallel-size") == "4"


def test_a_literal_command(tmp_path: Path) -> None:
    env = tmp_path / "ep.env"
    env.write_text("NCCL_DEBUG=WARN\nPRICE=$5\n")
    found = read_launch(
        [], argv=["NVSHMEM_QP_DEPTH=1024", "vllm", "serve", "my model", "--port=8000", "-O3"], env_files=[str(env)],
        vllm_version="v0.33.0",
    )  # fmt: skip
    (server,) = found.servers
    assert server.model is not None
    assert (server.kind, server.model.text, server.text("port"), server.text("optimization-level")) == (
        "argv", "my model", "8000", "3",
    )  # fmt: skip
    assert str(server.options["port"].location) == "--:1:50"
    assert (server.variable("NCCL_DEBUG"), server.variable("PRICE"), server.variable("NVSHMEM_QP_DEPTH")) == (
        "WARN", "$5", "1024",
    )  # fmt: skip
    assert (found.vllm_version, server.vllm_version) == ("0.33.0", "0.33.0")


@pytest.mark.parametrize("name", ["none.sh", ".", "notes.txt", "\0"])
def test_nothing_to_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("we talked about vllm yesterday\n")
    with pytest.raises(UsageError) as error:
        read_launch([str(tmp_path / name)])
    assert str(tmp_path) in str(error.value) or "\\x00" in str(error.value)


def test_a_pipe_and_a_file_too_large_do_not_hold_the_run(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.sh")
    with pytest.raises(UsageError, match="not a regular file"):
        read_launch([str(tmp_path / "pipe.sh")])
    with (tmp_path / "huge.sh").open("wb") as stream:
        stream.truncate(64 << 20)
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        read_launch([str(tmp_path / "huge.sh")])


def test_ten_megabytes_are_read_to_their_end(tmp_path: Path) -> None:
    text = "#!/bin/bash\n" + ("# " + "x" * 98 + "\n") * 100_000 + "vllm serve m --port 8000\n"
    found = read(tmp_path, text)
    assert found.servers[0].location.line == 100_002


def test_a_folder_is_walked_for_launches_only(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub" / "a.sh").write_text("vllm serve m\n")
    (tmp_path / ".git" / "b.sh").write_text("vllm serve m\n")
    (tmp_path / "values.yaml").write_text("a: {{ .x\n")
    (tmp_path / "broken.sh").write_text("echo 'open\n")
    (tmp_path / "install.sh").write_text("pip install vllm\n")
    found = read_launch([str(tmp_path)])
    assert [server.name for server in found.servers] == ["a.sh"]
    assert not found.trouble
