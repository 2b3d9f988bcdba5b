"""What the package roles read of a node, and the pins that they share with the checks."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.packages_lab import stand_in_deb, write_sums

ROOT = Path(__file__).parents[1]
ROLES = ROOT / "playbooks/roles"
STATE = ROLES / "packages/files/state.py"
REPOSITORY = ROLES / "packages/files/repository.py"


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return runpy.run_path(str(STATE), run_name="state")


def read(prefix: Path, *names: str) -> dict[str, Any]:
    argv = [sys.executable, "-IB", "-", str(prefix), ",".join(names), "/var/cache/epdoctor"]
    done = subprocess.run(argv, stdin=STATE.open(), capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def venv(prefix: Path, *dists: str, requires: str = "", version: str = "3.12.3") -> Path:
    """The files of a virtual environment that are looked at."""
    packages = prefix / "lib/python3.12/site-packages"
    packages.mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(sys.executable)
    (prefix / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")
    for dist in dists:
        (packages / f"{dist}.dist-info").mkdir()
        (packages / f"{dist}.dist-info" / "METADATA").write_text(
            f"Requires-Dist: {requires}\n" if requires else ""
        )
    return prefix


def test_environment_by_its_files(tmp_path: Path) -> None:
    prefix = venv(
        tmp_path / "v", "torch-2.14.0", "nvidia_nccl_cu13-2.30.7", "nixl-1.5.0", "requests-2.0",
        requires="nvidia-nccl-cu13==2.30.7; platform_system == 'Linux'",
    )  # fmt: skip
    found = read(prefix / "bin/python")["python"]
    assert (found["there"], found["venv"], found["version"], found["cuda"]) == (True, True, "3.12.3", "13")
    assert found["dists"] == {"torch": "2.14.0", "nvidia-nccl-cu13": "2.30.7", "nixl": "1.5.0"}
    assert found == read(prefix)["python"]
    (prefix / "lib/python3.12/site-packages/pip").mkdir()
    (prefix / "lib/python3.12/site-packages/pip/__main__.py").write_text("")
    assert read(prefix)["python"]["installer"] == [str(prefix / "bin/python"), "-m", "pip"]


def test_no_environment(tmp_path: Path) -> None:
    found = read(tmp_path / "none/bin/python")["python"]
    assert (found["there"], found["venv"], found["dists"], found["cuda"]) == (False, False, {}, "")


def test_cuda_of_torch(state: dict[str, Any]) -> None:
    cuda = state["cuda"]
    assert cuda({"torch": "2.9.0+cu128"}, []) == "12"
    assert cuda({"torch": "2.14.0+cu130"}, []) == "13"
    assert cuda({"torch": "2.14.0+cpu"}, []) == ""
    assert cuda({}, ["nvidia-nccl-cu12==2.27.3"]) == "12"


@given(text=st.text(max_size=300))
def test_any_package_list_is_read(state: dict[str, Any], text: str) -> None:
    state["debian"].__globals__["read"] = lambda path, limit=0: text
    assert isinstance(state["debian"]([]), dict)


def test_ofed_is_recognised(state: dict[str, Any]) -> None:
    for name in ("mlnx-ofed-kernel-dkms", "ofed-scripts", "doca-ofed"):
        assert state["OFED"].match(name)
    assert not state["OFED"].match("rdma-core")


def repository(folder: Path, manager: str = "apt") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-IB", "-", str(folder), manager]
    return subprocess.run(argv, stdin=REPOSITORY.open(), capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_a_folder_becomes_a_repository(tmp_path: Path) -> None:
    stand_in_deb(tmp_path, "one", "1.0", "/usr/share/one")
    write_sums(tmp_path)
    stand_in_deb(tmp_path, "older", "1.0", "/usr/share/older")
    assert repository(tmp_path).returncode == 0
    index = (tmp_path / "Packages").read_text()
    assert "Package: one\n" in index
    assert "Filename: ./one_1.0_all.deb\n" in index
    assert not (tmp_path / "older_1.0_all.deb").exists()  # not of this site's list

    with (tmp_path / "one_1.0_all.deb").open("ab") as file:
        file.write(b"x")
    wrong = repository(tmp_path)
    assert wrong.returncode != 0
    assert "one_1.0_all.deb has a wrong checksum" in wrong.stderr
    assert not (tmp_path / "one_1.0_all.deb").exists()


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    assert "there is no .deb file" in repository(tmp_path).stderr
    (tmp_path / "a.rpm").write_text("")
    assert "there is no SHA256SUMS" in repository(tmp_path, "dnf").stderr
    write_sums(tmp_path)
    assert "createrepo_c" in repository(tmp_path, "dnf").stderr


def test_pins_agree_with_the_checks() -> None:
    pins = yaml.safe_load((ROLES / "versions/defaults/main.yml").read_text())
    shm = yaml.safe_load((ROOT / "checks/host/shm-large-enough.yaml").read_text())
    nccl = yaml.safe_load((ROOT / "checks/compat/nccl.yaml").read_text())
    gdrdrv = yaml.safe_load((ROOT / "checks/gpudirect/gdrdrv-new-enough.yaml").read_text())
    from epdoctor.compat import version

    assert pins["versions_shm_minimum_mib"] == shm["with"]["minimum_mib"]
    assert pins["versions_releases"][0]["nccl_floor"] == nccl["gin_min"]
    assert version(pins["versions_gdrcopy"]) >= version(gdrdrv["with"]["gdrdrv"])
    low, high = pins["versions_nvshmem_floor"], pins["versions_nvshmem_below"]
    assert version(low) <= version(pins["versions_releases"][0]["nvshmem"]) < version(high)
