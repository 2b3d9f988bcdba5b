"""What the README shows is what the program prints. `python -m tests.test_readme` writes it in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(
    r"<!-- checked: (?P<command>[^\n]+) -->\n```\n\$ (?P<shown>[^\n]+)\n(?P<output>.*?)```\n", re.DOTALL
)


def output_of(command: str) -> str:
    """What the command prints at 80 columns, without the time it took."""
    argv = shlex.split(command)
    assert argv[0] == "epdoctor"
    env = {**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1", "EPDOCTOR_NO_STATE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "epdoctor", *argv[1:]],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return re.sub(r"( in|·) \d+\.\d s", r"\1 0.3 s", done.stdout)


def blocks() -> list[tuple[str, str, str]]:
    return [(m["command"], m["shown"], m["output"]) for m in BLOCK.finditer(README.read_text())]


@pytest.mark.parametrize(("command", "shown", "output"), blocks(), ids=[block[0] for block in blocks()])
def test_shown_output_is_real(command: str, shown: str, output: str) -> None:
    assert shown == command
    assert output == output_of(command), "python -m tests.test_readme writes it in"


def test_there_are_checked_blocks() -> None:
    assert len(blocks()) >= 2


def test_every_option_that_the_readme_names_exists() -> None:
    text = BLOCK.sub(lambda m: m["command"], README.read_text())
    env = {**os.environ, "COLUMNS": "200"}
    known = ""
    for command in (
        ["check"],
        ["collect"],
        ["container"],
        ["explain"],
        ["lint"],
        ["plan"],
        ["bench"],
        ["provision"],
        ["fix"],
        ["rollback"],
        ["report"],
        ["waive"],
        ["diff"],
        ["baseline", "save"],
        ["list", "checks"],
        [],
    ):
        known += subprocess.run(
            [sys.executable, "-m", "epdoctor", *command, "--help"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True
        ).stdout  # fmt: skip
    foreign = {"--all2all-backend", "--enable-expert-parallel", "--data-parallel-size"}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - foreign:
        assert option in known, option


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target


if __name__ == "__main__":
    README.write_text(
        BLOCK.sub(
            lambda m: (
                f"<!-- checked: {m['command']} -->\n```\n$ {m['command']}\n{output_of(m['command'])}```\n"
            ),
            README.read_text(),
        )
    )
