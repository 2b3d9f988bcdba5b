"""What a site brings itself, on real nodes: an index with a password, mirrors of git repositories, folders of wheels."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import provision_lab
from tests.git_lab import commit
from tests.lab.containers import ContainerNode, PodmanFleet
from tests.packages_lab import make_venv, real_wheels, stand_in_wheel
from tests.provision_lab import Outcome, make_gpu_node

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

PYTHON = "3.11"  # Debian 12, which the nodes run
SECRET = "hunter2hunter2"
# In place of pip: what every process of the node could have seen of this one, and what only root can read.
SPY = """import json, os, stat, sys
path = os.environ.get("PIP_CONFIG_FILE", "")
seen = {"argv": sys.argv, "environ": dict(os.environ)}
if path:
    folder = os.stat(os.path.dirname(path))
    seen["mode"] = [stat.S_IMODE(os.stat(path).st_mode), stat.S_IMODE(folder.st_mode)]
    seen["config"] = open(path).read()
json.dump(seen, open("/root/seen.json", "w"))
sys.exit("ERROR: Could not find a version that satisfies the requirement")
"""
# What UCX has for its build, in three lines each: autogen.sh, contrib/configure-release-mt, make install.
AUTOGEN = "#!/bin/sh\nset -e\ntest -e external/gpunetio/doca.h\ntouch configure\n"
CONFIGURE = """#!/bin/sh
set -e
test -e configure
prefix=$(echo "$1" | cut -d= -f2)
echo "$@" > words
printf 'all:\\n\\twhile test -e /root/slow; do sleep 0.2; done\\ninstall:\\n\\tmkdir -p $(DESTDIR)%s/bin\\n\\tcp ucx_info words $(DESTDIR)%s/bin\\n' "$prefix" "$prefix" > Makefile
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[PodmanFleet]:
    with PodmanFleet(2, packages=("g++", "git", "make", "python3-dev")) as nodes:
        for node in nodes.nodes:
            make_gpu_node(node)
        yield nodes


@pytest.fixture(scope="module")
def environments(fleet: PodmanFleet, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.mktemp("own")
    (pip,) = real_wheels(PYTHON, ["pip==25.3"])
    torch = stand_in_wheel(own, "torch", "2.14.0", ["nvidia-nccl-cu13==2.30.7"])
    for node in fleet.nodes:
        make_venv(node, pip, [torch])


def epdoctor(fleet: PodmanFleet, state: Path, *words: str) -> Outcome:
    """With time for compilers on a busy machine."""
    return provision_lab.epdoctor(fleet, state, *words, timeout_s=900)


def logs(state: Path) -> str:
    return "".join(path.read_text() for path in (state / "state").rglob("*.log"))


def test_the_password_of_an_index_is_nowhere_to_be_seen(
    fleet: PodmanFleet, environments: None, tmp_path: Path
) -> None:
    node = fleet.nodes[0]
    inventory = tmp_path / "inventory.ini"
    address = f"http://site:{SECRET}@127.0.0.1:9/simple"
    inventory.write_text(f"{fleet.inventory.read_text()}\n[all:vars]\nsource_pip_index_url={address}\n")
    (site,) = node.run(["sh", "-c", "ls -d /opt/vllm/lib/python3*/site-packages/pip"]).stdout.split()
    node.run(["cp", "-r", site, "/root/pip.good"])
    node.write(f"{site}/__main__.py", SPY)
    try:
        done = epdoctor(
            fleet, tmp_path, "provision", str(inventory), "--yes", "--tags", "nccl", "--limit", node.name,
            "-e", "nccl_version=2.30.9",
        )  # fmt: skip
    finally:
        node.run(["sh", "-c", f"rm -r {site} && mv /root/pip.good {site}"])
    assert done.rc == 1, done.err + done.out
    seen = json.loads(node.read("/root/seen.json"))
    assert "nvidia-nccl-cu13==2.30.9" in seen["argv"]
    assert SECRET not in json.dumps([seen["argv"], seen["environ"]])
    assert seen["mode"] == [0o600, 0o700]
    assert f"index-url = {address}\n" in seen["config"]
    # Gone again, and in no word or log of ours.
    assert node.run(["ls", "/var/cache/epdoctor/index"], check=False).returncode != 0
    assert "127.0.0.1:9/simple" in done.out
    assert SECRET not in done.out + done.err + logs(tmp_path)


def mirrors(folder: Path) -> str:
    """Of a library that is built as UCX is, with a submodule; the commit."""
    library, part = folder / "openucx/ucx.git", folder / "NVIDIA-DOCA/gpunetio"
    part.mkdir(parents=True)
    (part / "doca.h").touch()
    commit(part)
    (library / "contrib").mkdir(parents=True)
    for name, text in (
        ("autogen.sh", AUTOGEN),
        ("contrib/configure-release-mt", CONFIGURE),
        ("ucx_info", "#!/bin/sh\necho '# Library version: 9.9.9'\n"),
    ):
        (library / name).write_text(text)
        (library / name).chmod(0o755)
    commit(library, {"external/gpunetio": part})
    modules = library / ".gitmodules"
    modules.write_text(modules.read_text().replace(str(part), "https://github.com/NVIDIA-DOCA/gpunetio"))
    return commit(library)


def can_build(node: ContainerNode) -> None:
    """What the build of UCX asks for and this one does without: autotools, and the headers of libibverbs."""
    for name in ("autoconf", "automake", "libtoolize", "pkg-config"):
        node.write(f"/usr/local/bin/{name}", "#!/bin/sh\n")
        node.run(["chmod", "755", f"/usr/local/bin/{name}"])
    node.write("/usr/include/infiniband/verbs.h", "")


def only_one_run_builds(fleet: PodmanFleet, builder: ContainerNode, state: Path, words: list[str]) -> None:
    """A second run beside one that builds says so, and what it says to type ends that build."""
    builder.write("/root/slow", "")
    (state / "other").mkdir()
    first: list[Outcome] = []
    thread = threading.Thread(target=lambda: first.append(epdoctor(fleet, state / "other", *words)))
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while (
            builder.run(["pgrep", "-x", "make"], check=False).returncode != 0 and time.monotonic() < deadline
        ):
            time.sleep(0.3)
        failures = epdoctor(fleet, state, *words).json["applied"]["failures"]
        (error,) = [failure["error"] for failure in failures if failure["node"] == builder.name]
        assert error.startswith(f"UCX is being built on {builder.name} already, by another run")
        found = re.search(r"end it there: (pkill -f [-\w./]+)$", error)
        assert found is not None, error
        builder.run(found.group(1).split())
        # Without the file gone: it is not the build that ends by itself.
        builder.run(["sh", "-c", "exec flock --wait 20 /var/cache/epdoctor/src/ucx-*.lock true"])
    finally:
        builder.run(["rm", "/root/slow"])
        thread.join()
    assert first[0].rc == 1, first[0].out


def test_ucx_is_built_once_from_a_mirror_of_this_machine(
    fleet: PodmanFleet, environments: None, tmp_path: Path
) -> None:
    first, second = fleet.nodes
    revision = mirrors(tmp_path / "mirrors")
    house = tmp_path / "house"
    house.mkdir()
    stand_in_wheel(house, "nixl", "1.5.0")
    stand_in_wheel(house, "nixl-cu13", "1.5.0")
    words = [
        "provision",
        str(fleet.inventory),
        "--format",
        "json",
        "--tags",
        "ucx_nixl",
        "-e",
        "ucx_nixl_ucx=source",
    ]
    words += ["-e", f"ucx_nixl_ucx_revision={revision}", "--source", f"git={tmp_path / 'mirrors'}"]
    words += ["--source", f"wheelhouse={house}"]

    nobody = epdoctor(fleet, tmp_path, *words, "--yes")
    assert nobody.rc == 1, nobody.err + nobody.out
    (error,) = {failure["error"] for failure in nobody.json["plan"]["failures"]}
    assert error.startswith(
        "UCX must be built, and no node here can. Missing: autoconf, automake, libtoolize, pkg-config, inf"
    )

    can_build(second)
    (tmp_path / "mirrors/NVIDIA-DOCA").rename(tmp_path / "away")
    lacking = epdoctor(fleet, tmp_path, *words, "--yes").json["applied"]["failures"]
    errors = {failure["node"]: failure["error"] for failure in lacking}
    assert (
        "NVIDIA-DOCA/gpunetio is missing: it is a submodule of https://github.com/openucx/ucx.git"
        in errors[second.name]
    )
    assert "see the other node" in errors[first.name]
    (tmp_path / "away").rename(tmp_path / "mirrors/NVIDIA-DOCA")

    only_one_run_builds(fleet, second, tmp_path, [*words, "--yes"])
    done = epdoctor(fleet, tmp_path, *words, "--yes")
    assert done.rc in (0, 3), done.err + done.out
    changed = {(change["node"], change["what"].split(":")[0]) for change in done.json["applied"]["changes"]}
    assert {node for node, what in changed if what == "Build UCX"} == {second.name}
    for node in (first, second):
        assert {"Install UCX", "Install the wheel"} <= {what for where, what in changed if where == node.name}
        assert "9.9.9" in node.run(["/opt/ucx/bin/ucx_info", "-v"]).stdout
        assert "--prefix=/opt/ucx --enable-shared" in node.read("/opt/ucx/bin/words")
        assert node.run(["stat", "-c", "%U:%G", "/opt/ucx/bin/ucx_info"]).stdout == "root:root\n"
    again = epdoctor(fleet, tmp_path, *words, "--plan")
    assert again.json["plan"]["changes"] == [], again.out

    # What somebody else put there stays.
    first.run(["rm", "/opt/ucx/.epdoctor"])
    foreign = epdoctor(fleet, tmp_path, *words, "--plan", "--limit", first.name)
    assert "/opt/ucx is there and not by epdoctor; it stays" in foreign.json["plan"]["failures"][0]["error"]


GDRCOPY = """config:
lib:
\ttouch libgdrapi.so
driver:
\t@echo 'gdrdrv.c:32:10: fatal error: linux/mm.h: No such file or directory' >&2; exit 1
"""


def test_gdrcopy_from_a_mirror_says_what_is_missing(fleet: PodmanFleet, tmp_path: Path) -> None:
    """A revision that the mirror lacks, and a module that does not compile: nothing is installed or noted."""
    node = fleet.nodes[0]
    library = tmp_path / "mirrors/NVIDIA/gdrcopy.git"
    library.mkdir(parents=True)
    (library / "Makefile").write_text(GDRCOPY)
    revision = commit(library)
    node.run(["sh", "-c", 'mkdir -p "/lib/modules/$(uname -r)/build" /usr/src/nvidia-535.161.08/nvidia'])
    node.write("/usr/src/nvidia-535.161.08/nvidia/nv-p2p.h", "")
    words = ["--yes", "--format", "json", "--tags", "gdrcopy", "--limit", node.name]
    words += ["-e", "gdrcopy_source=git", "--source", f"git={tmp_path / 'mirrors'}"]

    gone = epdoctor(fleet, tmp_path, "provision", str(fleet.inventory), *words)
    (failure,) = gone.json["applied"]["failures"]
    assert failure["error"].startswith(f"{library} does not give GDRCopy at v2.5.2: fatal: ")
    assert failure["error"].endswith("Mirror it there, or name what is there: -e gdrcopy_revision=TAG")

    words += ["-e", f"gdrcopy_revision={revision}"]
    broken = epdoctor(fleet, tmp_path, "provision", str(fleet.inventory), *words)
    (failure,) = broken.json["applied"]["failures"]
    assert failure["error"].startswith(
        f"GDRCopy does not build on {node.name}: gdrdrv.c:32:10: fatal error: linux/mm.h: No such file"
    )
    assert "Nothing was installed" in failure["error"]
    assert node.run(["ls", "/var/lib/epdoctor/journal"], check=False).stdout.count(broken.json["run"]) == 0
