"""A site's own checks, and docs/add-a-check.md: its worked example is run as it stands.

`python -m tests.test_site_checks` writes the outputs into the page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add-a-check.md"
FILE = re.compile(r"^`(site/[^`\n]+)`[^\n]*:\n\n```[a-z]+\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
RUN = re.compile(r"^```\n\$ (epdoctor [^\n]+)\n(.*?)```\n", re.DOTALL | re.MULTILINE)


def write_example(folder: Path) -> None:
    for name, content in FILE.findall(PAGE.read_text()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if path.parent.name == "plugins":
            path.chmod(0o755)


def epdoctor(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "COLUMNS": "80",
        "PYTHONUTF8": "1",
        "EPDOCTOR_NO_STATE": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "epdoctor", *argv],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def output_of(cwd: Path, command: str) -> str:
    return re.sub(r" in \d+\.\d s", " in 0.3 s", epdoctor(cwd, *shlex.split(command)[1:]).stdout)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    write_example(tmp_path)
    return tmp_path


def test_the_page_has_an_example_of_each_kind() -> None:
    names = [name for name, _ in FILE.findall(PAGE.read_text())]
    for pattern in (
        r"site/site/.+\.yaml",
        r"site/rules/.+\.py",
        r"site/profiles/.+\.yaml",
        r"site/plugins/.+",
    ):
        assert any(re.fullmatch(pattern, name) for name in names), pattern


@pytest.mark.parametrize(("command", "output"), RUN.findall(PAGE.read_text()), ids=lambda value: value[:60])
def test_the_worked_example_does_what_the_page_shows(example: Path, command: str, output: str) -> None:
    assert output == output_of(example, command), "python -m tests.test_site_checks writes it in"


def test_the_example_profile_regrades_and_adds_to_its_parent(example: Path) -> None:
    done = epdoctor(example, "check", "--checks", "site", "--profile", "site-night", "--demo", "-v")
    assert "site.kernel-of-the-image" not in done.stdout.partition("✓")[0], "6.8 is enough for the profile"
    assert "gpu.nvlinks-up" in done.stdout, "from nightly"
    assert "profile site-night" in done.stdout


def test_a_run_leaves_nothing_in_the_sites_folder(example: Path) -> None:
    before = sorted(example.rglob("*"))
    epdoctor(example, "check", "--checks", "site", "--demo")
    assert sorted(example.rglob("*")) == before


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("rules/image.py", "def (:\n", ["rules/image.py:1:"]),
        ("rules/image.py", "import nothing_of_that_name\n", ["rules/image.py:1:", "nothing_of_that_name"]),
        ("rules/image.py", "x = 1\n", ["rules/image.py: registers no rule"]),
        (
            "rules/more.py",
            "from epdoctor.rules import node_rule\n@node_rule\ndef kernel_at_least(node):\n    yield\n",
            ["rules/more.py:", "two rules are called kernel_at_least"],
        ),
        ("rules/image.py", None, ["os-of-the-image.yaml", "unknown rule site_os_is"]),
        (
            "site/kernel-of-the-image.yaml",
            "id: site.kernel-of-the-image\n",
            ["kernel-of-the-image.yaml", "missing"],
        ),
        ("profiles/site-night.yaml", "extends: nihgtly\n", ["site-night.yaml", "did you mean nightly"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    example: Path, path: str, content: str | None, words: list[str]
) -> None:
    if content is None:
        (example / "site" / path).unlink()
    else:
        (example / "site" / path).write_text(content)
    done = epdoctor(example, "check", "--checks", "site", "--profile", "site-night", "--demo")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_an_id_of_epdoctors_own_is_refused(example: Path) -> None:
    text = (ROOT / "checks" / "host" / "max-map-count.yaml").read_text()
    (example / "site" / "host").mkdir()
    (example / "site" / "host" / "max-map-count.yaml").write_text(text)
    done = epdoctor(example, "check", "--checks", "site", "--demo")
    assert (done.returncode, "epdoctor has a check host.max-map-count" in done.stderr) == (2, True)


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_checks_is_refused(tmp_path: Path, folder: str) -> None:
    assert epdoctor(tmp_path, "check", "--checks", folder, "--demo").returncode == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        write_example(Path(temporary))
        PAGE.write_text(
            RUN.sub(lambda m: f"```\n$ {m[1]}\n{output_of(Path(temporary), m[1])}```\n", PAGE.read_text())
        )
