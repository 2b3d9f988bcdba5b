"""Any text is a launch, trouble, or a usage error with its reason; never another exception, and never for long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import UsageError
from epdoctor.launch.model import LaunchSet
from epdoctor.launch.read import read_launch

SHELL = (
    "vllm serve m", " --tp", "-dp 8", "--data-parallel-size=", "$X", "${X:-", "${A[@]}", '"', "'", "$(", "$((", "))",
    ")", "}", "{", "`", "\\", "\\\n", "\n", " # c\n", ";", "&&", "||", "|", "&", "if true; then", "fi", "else",
    "for i in 0 1; do", "done", "while true; do", "case $1 in", "a) ;;", "esac", "f() {", "A=(", "A+=", "A[1]=",
    "export A=1", "<<EOF\n", "EOF\n", "<<'E'\nE\n", "cat > x.sh", "bash -c '", "srun -n4 ", "docker run -e A=b ",
    "vllm/vllm-openai:v0.33.0 ", "source x.sh", "eval ", "exec ", "env A=b ", "ssh h '", "$'\\n'", "{0..9}", "[[ a == b ]]",
    "#SBATCH --nodes=2\n", "i++", "10**9", "-O3", "--eplb-config '{", "<model>", "\0", "é", "𝒳", "\r\n", "set -a\n", "!",
)  # fmt: skip
YAML = (
    "apiVersion: v1\n", "kind: LeaderWorkerSet\n", "kind: List\n", "items:\n- ", "metadata: {name: a}\n", "spec:\n",
    "  template:\n", "    spec:\n", "      containers:\n", "      - name: v\n", "        command: [bash, -c]\n",
    "        args: ['vllm serve m']\n", "        image: vllm/vllm-openai:v0.33.0\n", "        env:\n",
    "        - {name: A, value: 1}\n", "        - name: B\n          valueFrom: {fieldRef: {fieldPath: status.podIP}}\n",
    "  leaderWorkerTemplate:\n", "    size: 3\n", "&a ", "*a", "<<: *a\n", "---\n", "{{ .x }}", "- ", "? ", "!!binary ",
    "|\n", ">-\n", "\t", "[", "]", "{", "}", "services:\n", "  a:\n", "    image: vllm/vllm-openai\n",
    "    command: --x $Y\n", "    environment: [A=b]\n", "[Service]\n", "ExecStart=vllm serve %i ${A} \\\n", "%", "🙂",
)  # fmt: skip


def read(folder: Path, name: str, text: str) -> LaunchSet | None:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        return read_launch([str(path)])
    except UsageError:
        return None


def texts(pieces: tuple[str, ...]) -> Any:
    return st.one_of(
        st.text(max_size=300),
        st.lists(st.sampled_from(pieces), max_size=40).map("".join),
        st.lists(st.sampled_from(pieces), max_size=30).map(" ".join),
    )


COMMON = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@COMMON
@given(body=texts(SHELL))
def test_any_shell_text(tmp_path: Path, body: str) -> None:
    for name, head in (("a.sh", "#!/bin/bash\n"), ("b.sbatch", "#!/bin/bash\n#SBATCH -N 2\n")):
        found = read(tmp_path, name, head + body)
        for server in found.servers if found else ():
            assert server.location.line > 0
            assert all(option.location.path for option in server.options.values())


@COMMON
@given(body=texts(YAML))
def test_any_manifest(tmp_path: Path, body: str) -> None:
    read(tmp_path, "a.yaml", "apiVersion: v1\nkind: Pod\n" + body)
    read(tmp_path, "b.yaml", body)
    read(tmp_path, "c.yaml", "services:\n  a:\n" + body)


@COMMON
@given(body=texts(YAML + SHELL))
def test_any_unit_and_environment_file(tmp_path: Path, body: str) -> None:
    read(tmp_path, "a.service", "[Service]\nEnvironment=A=b\n" + body)
    read(tmp_path, "a.service", "[Service]\nExecStart=" + body)
    read(tmp_path, "a.env", "A=b\n" + body)
    read(tmp_path, "config.yaml", "tensor-parallel-size: 8\n" + body)


@COMMON
@given(words=st.lists(st.one_of(st.text(max_size=20), st.sampled_from(SHELL)), max_size=12))
def test_any_command_line(words: list[str]) -> None:
    for argv in (
        words,
        ["vllm", "serve", *words],
        ["bash", "-c", *words],
        ["docker", "run", *words],
        ["srun", *words],
    ):
        try:
            read_launch([], argv=argv)
        except UsageError:
            continue


@pytest.mark.parametrize(
    "text",
    [
        '"' * 50_000,
        "(" * 50_000,
        "${" * 20_000,
        "$(" * 50_000,
        "`" * 50_001,
        "<<A " * 10_000,
        "if " * 20_000,
        "vllm serve " + "$(" * 20_000,
        'vllm serve "' + "${a:-" * 10_000,
        "X=a\n" + "X=$X$X\n" * 100 + "vllm serve $X\n",
        "for i in {0..9999}; do for j in {0..9999}; do vllm serve m; done; done\n",
        "f() { f; f; }\nf\nvllm serve m\n",
        "while :; do vllm serve m; done\n",
        "for ((;;)); do vllm serve m; done\n",
        "vllm serve $((9**9**9))\n",
        "bash -c " * 1_000 + "x\n",
        "eval " * 500 + "vllm serve m\n",
        "vllm serve m " + "--a 1 " * 20_000,
    ],
    ids=lambda text: text[:16].strip(),
)
def test_texts_made_to_take_for_ever_end(tmp_path: Path, text: str) -> None:
    read(tmp_path, "a.sh", "#!/bin/bash\n" + text)


def test_a_manifest_of_nested_anchors_ends(tmp_path: Path) -> None:
    lines = ["apiVersion: v1", "kind: Pod", "a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    lines += ["spec: {containers: [{name: v, image: vllm/vllm-openai:v0.33.0, args: [--model, m]}], x: *a59}"]
    found = read(tmp_path, "a.yaml", "\n".join(lines))
    assert found is not None
    assert [server.text("model") for server in found.servers] == ["m"]


def test_a_manifest_nested_without_end_is_trouble(tmp_path: Path) -> None:
    found = read(tmp_path, "a.yaml", "apiVersion: v1\nkind: Pod\nspec: " + "[" * 50_000)
    assert found is not None
    assert found.trouble
    assert "nested" in found.trouble[0].found or "YAML" in found.trouble[0].found


def test_an_anchor_that_holds_itself_is_trouble(tmp_path: Path) -> None:
    found = read(tmp_path, "a.yaml", "apiVersion: v1\nkind: Pod\nspec: &a\n  b: *a\n")
    assert found is not None
    assert "contains itself" in found.trouble[0].found
