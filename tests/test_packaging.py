"""The wheel holds exactly what git has, and the program works from it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (found,) = folder.glob("*.whl")
    return found


def git_files(*folders: str) -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout: the list of files to compare with")
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_holds_what_git_has(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = git_files("epdoctor") | {f"epdoctor/_data/{name}" for name in git_files("checks", "playbooks")}
    assert names == expected


def test_it_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Without the checkout: data inside the package, dependencies of this environment."""
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    env = {**os.environ, "PYTHONPATH": str(target), "EPDOCTOR_NO_STATE": "1"}
    code = (
        "import epdoctor.paths as p; print(p.data_dir('checks')); from epdoctor.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "--demo"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert str(target) in done.stdout
    assert "NOT READY" in done.stdout


def test_entry_point_and_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "epdoctor = epdoctor.__main__:main" in archive.read(info).decode()
    metadata = archive.read(info.replace("entry_points.txt", "METADATA")).decode()
    assert "License-Expression: Apache-2.0" in metadata
    for name in (
        "click",
        "rich",
        "fabric",
        "nvidia-ml-py",
        "psutil",
        "packaging",
        "PyYAML",
        "ansible-core",
        "ansible-runner",
    ):
        assert f"requires-dist: {name.lower()}" in metadata.lower()
