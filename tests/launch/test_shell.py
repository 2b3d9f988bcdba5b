"""Shell scripts: what reaches vLLM is what bash would pass, and what the machine decides stays open."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.launch.files import one, read, texts


def test_the_ep_guide_on_one_node(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        """
        #!/bin/bash
        vllm serve deepseek-ai/DeepSeek-V3-0324 \\
            --tensor-parallel-size 1 \\
            --data-parallel-size 8 \\
            --enable-expert-parallel
        """,
    )
    assert server.model is not None
    assert server.model.text == "deepseek-ai/DeepSeek-V3-0324"
    assert texts(server) == {
        "tensor-parallel-size": "1",
        "data-parallel-size": "8",
        "enable-expert-parallel": "",
    }
    assert server.on("enable-expert-parallel")
    assert server.number("data-parallel-size") == 8
    assert str(server.location) == f"{tmp_path}/serve.sh:2:1"
    assert str(server.options["data-parallel-size"].location) == f"{tmp_path}/serve.sh:4:26"


def test_the_ep_guide_on_two_nodes(tmp_path: Path) -> None:
    common = "--all2all-backend deepep_low_latency -tp 1 -ep -dp 16 -dpl 8 -dpa 192.168.1.100 -dpp 13345"
    found = read(
        tmp_path, f"vllm serve deepseek-ai/DeepSeek-V3-0324 {common} -asc=8\n",
        f"vllm serve deepseek-ai/DeepSeek-V3-0324 {common} -dpr 8 --headless\n",
    )  # fmt: skip
    head, worker = found.servers
    assert (head.index, worker.index) == (0, 1)
    assert head.number("api-server-count") == 8
    assert worker.number("data-parallel-start-rank") == 8
    assert worker.on("headless")
    assert [len(servers) for servers in found.deployments()] == [2]
    assert all(option.known_to_vllm for server in found.servers for option in server.options.values())


def test_eplb_in_json_and_dotted(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        vllm serve m --enable-eplb --eplb-config '{"window_size":1000,
          "num_redundant_experts":2}'
        vllm serve m --enable_eplb --eplb_config.num_redundant_experts 32 --eplb-config.use_async=true
        """,
    )
    first, second = found.servers
    assert first.text("eplb-config").startswith('{"window_size":1000,\n')
    assert (
        second.options["eplb-config.num_redundant_experts"].written == "--eplb_config.num_redundant_experts"
    )
    assert second.text("eplb-config.use_async") == "true"
    assert second.on("enable-eplb")


def test_a_comment_after_the_backslash_is_reported_once_and_what_was_meant_is_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        vllm serve m \\
          --tensor-parallel-size 1 \\  # within a node
          --data-parallel-size 8 \\  # ranks
          --enable-expert-parallel
        """,
    )
    assert [str(problem.location) for problem in found.trouble] == [f"{tmp_path}/serve.sh:2:28"]
    assert "comment after the backslash" in found.trouble[0].found
    assert list(texts(found.servers[0])) == [
        "tensor-parallel-size",
        "data-parallel-size",
        "enable-expert-parallel",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exec vllm serve m \\\n  # why\n  --dp 8\n", "comment line between"),
        ("vllm serve m \\\n\n  --dp 8\n", "empty line"),
        ("vllm serve m \\ \n  --dp 8\n", "white space after"),
        ("vllm serve m -tp 1\n  --dp 8\n", "no backslash"),
        ("vllm serve m -tp 1 # all \\\n  --dp 8\n", "inside a comment"),
        ("exec vllm serve m \\ # x\n  --dp 8\n", "comment after"),
        ("docker run vllm/vllm-openai:v0.33.0 \\ # image\n  --model m --dp 8\n", "comment after"),
    ],
)
def test_every_way_to_lose_the_rest_of_a_command(tmp_path: Path, text: str, reason: str) -> None:
    found = read(tmp_path, text)
    assert len(found.trouble) == 1
    assert reason in found.trouble[0].found
    assert found.servers[0].text("dp") == "8"


EXPANSIONS = [
    ("vllm serve m --x \"$UNSET\"", "$UNSET"),
    ("Y=${X:-7}\nvllm serve m --x $Y", "7"),
    ("A=2\nvllm serve m --x $((A * 8 + 1))", "17"),
    ("A=2\nvllm serve m --x $((2**A % 3)) ", "1"),
    ("A='a b'\nvllm serve m --x \"$A\"", "a b"),
    ("A=ab\nA+=c\nvllm serve m --x ${A}d", "abcd"),
    ("A=deepseek-ai/V3\nvllm serve m --x ${A##*/}", "V3"),
    ("A=a-b-c\nvllm serve m --x ${A//-/_}", "a_b_c"),
    ("A=(1 2 3)\nvllm serve m --x ${A[1]}", "2"),
    ("A=(1 2 3)\nvllm serve m --x ${#A[@]}", "3"),
    ("declare -A M=([a]=1 [b]=2)\nvllm serve m --x ${M[b]}", "2"),
    ("f() { local p=$1; vllm serve m --x $p; }\nf 5", "5"),
    ("if [ 1 -eq 1 ]; then X=1; else X=2; fi\nvllm serve m --x $X", "1"),
    ("X=b\ncase $X in a) Y=1;; b|c) Y=2;; *) Y=3;; esac\nvllm serve m --x $Y", "2"),
    ("X=$(echo 4)\nvllm serve m --x $X", "4"),
    ("CMD='vllm serve m --x 3'\neval $CMD", "3"),
    (': "${A:=5}"\nvllm serve m --x $A', "5"),
    ("f() { local A=1 B; B=2; C=3; }\nA=0; f; vllm serve m --x \"$A${B-}$C\"", "03"),
    ("read -r -d '' A <<'E' || true\n--x 3\nE\nvllm serve m $A", "3"),
    ("CMD='vllm serve m --x 3'\n$CMD", "3"),
    ("CMD=(vllm serve m --x 'a b')\n\"${CMD[@]}\"", "a b"),
    ("bash -c 'vllm serve m --x $0' 9", "9"),
    ("bash -c 'vllm serve m --x $1' sh 9", "9"),
    ("export A=1\nbash -lc \"vllm serve m --x \\$A\"", "1"),
    ("nohup env B=1 timeout -k 5 60 numactl -N 0 uv run vllm serve m --x 3 > log 2>&1 &", "3"),
    ("python3 -u -m vllm.entrypoints.openai.api_server --model m --x 3", "3"),
    ("/opt/venv/bin/vllm serve m --x=3", "3"),
    ("ssh -p 22 root@h 'cd /x && vllm serve m --x 3'", "3"),
    ("tmux new-session -d -s a 'vllm serve m --x 3'", "3"),
    ("vllm serve m ${K:+--y $K} --x 3", "3"),
    ("true && [ -n \"a\" ] && vllm serve m --x 3 || exit 1", "3"),
    ("if ! command -v vllm; then exit 1; fi\nvllm serve m --x 3", "3"),
    ("cat > run.sh <<'EOF'\nvllm serve m --x 3\nEOF\nchmod +x run.sh", "3"),
    ("X=3\ncat <<EOF > run.sh\nvllm serve m --x $X\nEOF\nbash run.sh", "3"),
    ("ssh h bash -s <<EOF\nvllm serve m --x 3\nEOF", "3"),
    ("( cd x; vllm serve m --x 3 ) | tee log", "3"),
    ("while true; do vllm serve m --x 3; sleep 1; done", "3"),
    ("vllm serve m --x <n>", "<n>"),
]  # fmt: skip
"""(text, what reaches vLLM after --x)"""
ELSEWHERE = (
    "-lc",
    "ssh",
    "tmux",
    "uv run",
    "python3",
    "/opt/venv",
    "while true",
    "$UNSET",
    "<n>",
    "command -v",
    "chmod",
)
"""Not for bash on this machine alone."""


@pytest.mark.parametrize(("text", "words"), EXPANSIONS)
def test_what_follows_the_flag(tmp_path: Path, text: str, words: str) -> None:
    found = read(tmp_path, text + "\n")
    assert len(found.servers) == 1
    assert found.servers[0].text("x") == words
    assert found.servers[0].model is not None
    assert found.servers[0].model.text == "m"


@pytest.mark.parametrize(
    ("text", "words"), [pair for pair in EXPANSIONS if not any(word in pair[0] for word in ELSEWHERE)]
)
def test_bash_agrees(tmp_path: Path, text: str, words: str) -> None:
    """Our own texts, run by bash with a `vllm` that writes down its arguments."""
    stub = tmp_path / "bin" / "vllm"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$OUT"\n')
    stub.chmod(0o755)
    out = tmp_path / "out"
    environment = {"PATH": f"{stub.parent}:/usr/bin:/bin", "OUT": str(out)}
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, check=False, timeout=20)
    given = out.read_text().split("\0")
    assert given[given.index("--x") + 1] == words if "--x" in given else f"--x={words}" in given


@pytest.mark.parametrize(
    ("text", "unresolved", "runtime"),
    [
        ("vllm serve m --x $RANK", ("RANK",), ""),
        ("vllm serve m --x $1", ("1",), ""),
        ("vllm serve m --x $((RANK * 8))", ("RANK",), ""),
        ("vllm serve m --x $(hostname -I | awk '{print $1}')", (), "hostname -I"),
        ("IP=$(hostname -i)\nvllm serve m --x \"$IP\"", (), "hostname -i"),
        ("vllm serve m --x $HOSTNAME", (), "hostname"),
        ("if [ -f /x ]; then A=1; else A=2; fi\nvllm serve m --x $A", ("A",), ""),
        ("vllm serve m --x <n>", ("<n>",), ""),
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_guessed(
    tmp_path: Path, text: str, unresolved: tuple[str, ...], runtime: str
) -> None:
    value = read(tmp_path, text + "\n").servers[0].options["x"].value
    assert (value.unresolved, value.runtime) == (unresolved, runtime)
    assert not value.known


def test_variables_that_reach_the_process(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        """
        export A=1 B
        B=2; C=3
        set -a
        D=4
        set +a
        source env.sh
        unset GONE
        F=6 env G=7 vllm serve m
        """,
        env_sh="export E=5\nexport GONE=1\nNOT=1\n",
    )
    found = {name: (value.text, value.source) for name, value in server.environment.items()}
    assert found == {
        "A": ("1", "export"), "D": ("4", "export"), "E": ("5", "export"), "F": ("6", "inline"), "G": ("7", "inline"),
    }  # fmt: skip
    assert str(server.environment["E"].location) == f"{tmp_path}/env.sh:1:10"


def test_sudo_ssh_and_docker_do_not_pass_the_callers_variables(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        export A=1
        sudo vllm serve a
        sudo -E vllm serve b
        ssh gpu02 vllm serve c
        docker run --gpus '"device=0,1"' -e A -e B=2 --shm-size 16g --ulimit memlock=-1 --cap-add=IPC_LOCK \\
          --network host vllm/vllm-openai:v0.33.0 --model d
        """,
    )
    _, _, c, d = found.servers
    assert [sorted(server.environment) for server in found.servers] == [[], ["A"], [], ["A", "B"]]
    assert c.node == "gpu02"
    assert d.pod is not None
    assert (d.pod.gpus, d.pod.shm_bytes, d.pod.memlock_bytes, d.pod.capabilities, d.pod.host_network) == (
        2, 16 << 30, -1, ("IPC_LOCK",), True,
    )  # fmt: skip
    assert (d.vllm_version, d.visible_gpus) == ("0.33.0", 2)
    assert d.model is not None
    assert d.model.text == "d"


def test_a_dash_alone_behind_a_host_ends(tmp_path: Path) -> None:
    """It is no option, and was skipped for ever."""
    assert texts(one(tmp_path, "ssh h - x\nvllm serve m --x 3\n"))["x"] == "3"


def test_a_loop_is_a_server_a_round(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        NODES=(gpu01 gpu02)
        for i in "${!NODES[@]}"; do
          ssh ${NODES[$i]} "vllm serve m --data-parallel-start-rank $((i * 8))" &
        done
        for ((r = 0; r < 2; r++)); do CUDA_VISIBLE_DEVICES=$r,7 vllm serve n --port $((8000 + r)) & done
        for x in $(seq 3 4) {5..6}; do vllm serve o --port $x; done
        """,
    )
    assert [(s.node, s.text("data-parallel-start-rank")) for s in found.servers[:2]] == [
        ("gpu01", "0"),
        ("gpu02", "8"),
    ]
    assert [(s.text("port"), s.visible_gpus) for s in found.servers[2:4]] == [("8000", 2), ("8001", 2)]
    assert [s.text("port") for s in found.servers[4:]] == ["3", "4", "5", "6"]


def test_both_ways_of_an_open_branch_are_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        if [ "$NODE_RANK" -eq 0 ]; then vllm serve m --port 1; else exec vllm serve m --headless; fi
        """,
    )
    assert [list(server.options) for server in found.servers] == [["port"], ["headless"]]


def test_a_script_that_checks_its_arguments_is_read_on(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        """
        if [ $# -lt 1 ]; then echo usage; exit 1; fi
        [ -z "$MODEL" ] && { echo "MODEL?"; exit 2; }
        TP=8
        while [[ $# -gt 0 ]]; do case $1 in --tp) TP=$2; shift 2;; *) exit 1;; esac; done
        vllm serve "$MODEL" -tp $TP "$@"
        """,
    )
    assert server.number("tensor-parallel-size") == 8
    assert server.model is not None
    assert server.model.unresolved == ("MODEL",)
    assert not server.stray


def test_a_script_that_another_one_starts_counts_once(tmp_path: Path) -> None:
    (tmp_path / "node.sh").write_text("vllm serve m --node-rank $1 --master-addr $HEAD\n")
    found = read(
        tmp_path,
        "export HEAD=10.0.0.1\nfor i in 0 1; do bash node.sh $i; done\n",
    )
    both = [server.text("node-rank") for server in found.servers]
    assert both == ["0", "1"]
    from epdoctor.launch.read import read_launch

    again = read_launch([str(tmp_path)])
    assert [(s.text("node-rank"), s.text("master-addr")) for s in again.servers] == [
        ("0", "10.0.0.1"), ("1", "10.0.0.1"),
    ]  # fmt: skip


def test_an_open_quote_is_named_with_its_place(tmp_path: Path) -> None:
    found = read(tmp_path, 'export A=1\nvllm serve m --eplb-config \'{"a": 1}\n')
    assert "single quote" in found.trouble[0].found
    assert str(found.trouble[0].location) == f"{tmp_path}/serve.sh:2:28"


def test_an_open_quote_that_a_later_one_closes_is_found_where_it_opens(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        vllm serve "m \\
          --tensor-parallel-size 8 \\
          --eplb-config "{}" \\
          --port 8000
        """,
    )
    assert found.trouble
    assert str(found.trouble[0].location) == f"{tmp_path}/serve.sh:1:12"


def test_environment_files_beside_a_script(tmp_path: Path) -> None:
    (tmp_path / "serve.sh").write_text("vllm serve m --node-rank $RANK\n")
    (tmp_path / "node0.env").write_text("RANK=0\nNCCL_IB_HCA=mlx5_0\n")
    (tmp_path / "node1.env").write_text("RANK=1\nNCCL_IB_HCA=mlx5_0\n")
    from epdoctor.launch.read import read_launch

    found = read_launch([str(tmp_path / name) for name in ("serve.sh", "node0.env", "node1.env")])
    assert [(s.text("node-rank"), s.variable("NCCL_IB_HCA"), s.index) for s in found.servers] == [
        ("0", "mlx5_0", 0), ("1", "mlx5_0", 1),
    ]  # fmt: skip
    assert found.servers[0].environment["NCCL_IB_HCA"].source == "env-file"


def test_a_config_file_lies_below_the_command_line(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        "vllm serve --config ep.yaml --tensor-parallel-size 4\n",
        ep_yaml="model: deepseek-ai/V3\ntensor-parallel-size: 8\nenable_expert_parallel: true\nenable-eplb: false\n"
        "served-model-name: [a, b]\neplb-config: {window_size: 10}\n",
    )
    assert server.model is not None
    assert server.model.text == "deepseek-ai/V3"
    assert server.number("tensor-parallel-size") == 4
    assert [option.value.text for option in server.repeated] == ["8"]
    assert server.on("enable-expert-parallel")
    assert not server.on("enable-eplb")
    assert server.text("served-model-name") == "a b"
    assert server.text("eplb-config") == '{"window_size": 10}'
    assert str(server.options["enable-expert-parallel"].location) == f"{tmp_path}/ep.yaml:3:25"


def test_letters_outside_ascii_do_not_shift_places(tmp_path: Path) -> None:
    server = one(tmp_path, "# größe 🙂\nexport A=größe; vllm serve m --port 8000\n")
    assert server.variable("A") == "größe"
    assert str(server.options["port"].location) == f"{tmp_path}/serve.sh:2:37"


def test_windows_line_ends_are_reported_and_read_as_meant(tmp_path: Path) -> None:
    (tmp_path / "serve.sh").write_bytes(b"#!/bin/bash\r\nvllm serve m \\\r\n  --port 8000\r\n")
    from epdoctor.launch.read import read_launch

    found = read_launch([str(tmp_path / "serve.sh")])
    assert "carriage returns" in found.trouble[0].found
    assert found.servers[0].text("port") == "8000"


def test_placeholders_of_manuals_are_not_filled_in(tmp_path: Path) -> None:
    found = read(tmp_path, "# usage: <file> in\nvllm serve <your model> --port 8000 < /dev/null > log\n")
    (problem,) = found.trouble
    assert "<your model> is not filled in" in problem.found
    assert found.servers[0].text("port") == "8000"


def test_one_script_for_all_nodes_is_read_once_for_each_way(tmp_path: Path) -> None:
    by_name = read(
        tmp_path,
        """
        case "$(hostname)" in
          gpu01) RANK=0; EXTRA="--api-server-count 4" ;;
          gpu02) RANK=8; EXTRA="--headless" ;;
          *) echo "unknown node"; exit 1 ;;
        esac
        vllm serve m -dp 16 -dpl 8 -dpa 10.0.0.1 -dpr $RANK $EXTRA
        """,
    )
    assert [(s.text("data-parallel-start-rank"), s.on("headless"), s.index) for s in by_name.servers] == [
        ("0", False, 0), ("8", True, 1),
    ]  # fmt: skip
    by_rank = read(
        tmp_path,
        """
        NODE_RANK=${1:-0}
        ARGS="-dp 16 -dpl 8"
        if [ "$NODE_RANK" -gt 0 ]; then ARGS="$ARGS --headless -dpr $((NODE_RANK * 8))"; fi
        vllm serve m $ARGS
        """,
    )
    assert [s.on("headless") for s in by_rank.servers] == [True, False]
    assert by_rank.servers[0].options["data-parallel-start-rank"].value.unresolved == ("NODE_RANK",)
    assert not by_rank.trouble


def test_a_choice_that_is_not_the_nodes_stays_open(tmp_path: Path) -> None:
    found = read(tmp_path, "if [ -f /etc/x ]; then TP=4; else TP=8; fi\nvllm serve m -tp $TP\n")
    assert [s.options["tensor-parallel-size"].value.unresolved for s in found.servers] == [("TP",)]
