"""vLLM's environment on real nodes without network: built once, installed everywhere, from a wheelhouse or a bundle.

The "kernels" are a small C extension, built by the same path as DeepEP; "vllm" is an empty package of that name.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import provision_lab
from tests.git_lab import commit
from tests.lab.containers import ContainerNode, PodmanFleet
from tests.provision_lab import ROOT, Outcome, make_gpu_node, snapshot

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

SETUP = """from setuptools import Extension, setup
setup(name="tiny_ext", version="{version}", packages=["tiny_ext"],
      ext_modules=[Extension("tiny_ext.answer", ["tiny_ext/answer.c"])])
"""
ANSWER = """#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "answer", "", -1, methods};
PyMODINIT_FUNC PyInit_answer(void) { return PyModule_Create(&module); }
"""
TOOLS = ("deepep_build_requires=[git, cxx]", "deepep_package=tiny-ext", "vllm_space_gb=1")
TAGS = ("--tags", "vllm,deepep")


class Site:
    """What a site without network has on the machine that runs epdoctor: a wheelhouse, and a repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheelhouse = folder / "wheelhouse"
        self.repository = folder / "tiny"
        (self.repository / "tiny_ext").mkdir(parents=True)
        (self.repository / "tiny_ext/answer.c").write_text(ANSWER)
        self.first = self.commit("1.0")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        tools = [
            *pip,
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(self.wheelhouse),
            "pip",
            "setuptools",
            "ninja",
        ]
        subprocess.run(tools, check=True, capture_output=True)
        stub = folder / "stub"
        (stub / "vllm").mkdir(parents=True)
        (stub / "vllm/__init__.py").touch()
        (stub / "setup.py").write_text(
            "from setuptools import setup\nsetup(name='vllm', version='0.33.0', packages=['vllm'])\n"
        )
        # Said here, since older pip would use the tools of the environment, which may have none.
        (stub / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools", "wheel"]\n')
        wheel = [*pip, "wheel", "-q", "--no-deps", "-w", str(self.wheelhouse), str(stub)]
        subprocess.run(wheel, check=True, capture_output=True)

    def commit(self, version: str) -> str:
        """The sources as that version; the commit's full name."""
        (self.repository / "setup.py").write_text(SETUP.format(version=version))
        (self.repository / "tiny_ext/__init__.py").write_text(f'__version__ = "{version}"\n')
        return commit(self.repository)

    def send(self, node: ContainerNode) -> None:
        """The repository as it is now, at /srv/tiny of the node."""
        packed = subprocess.run(
            ["tar", "c", "-C", str(self.folder), "tiny"], check=True, capture_output=True
        ).stdout
        node.run(["rm", "-rf", "/srv/tiny"])
        subprocess.run(
            ["podman", "exec", "-i", node.name, "tar", "x", "-C", "/srv"], input=packed, check=True
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def fleet(site: Site) -> Iterator[PodmanFleet]:
    with PodmanFleet(3, packages=("g++", "git", "python3-dev")) as nodes:
        for node in nodes.nodes:
            make_gpu_node(node)
        # Only the first has the sources; nobody else could build.
        site.send(nodes.nodes[0])
        yield nodes


def epdoctor(fleet: PodmanFleet, state: Path, *words: str) -> Outcome:
    """With time for compilers on a busy machine."""
    return provision_lab.epdoctor(fleet, state, *words, timeout_s=900)


def options(*more: str, revision: str, url: str = "/srv/tiny") -> list[str]:
    words = [*TOOLS, f"deepep_revision={revision}", f"deepep_git_url={url}", *more]
    return ["--format", "json", *[word for value in words for word in ("-e", value)]]


def changes(report: dict[str, object], part: str) -> set[tuple[str, str]]:
    run = report[part]
    assert isinstance(run, dict)
    return {(change["node"], change["what"]) for change in run["changes"]}


def errors(outcome: Outcome, part: str) -> dict[str, tuple[str, str]]:
    """Node -> (task, error)."""
    return {
        failure["node"]: (failure["task"], failure["error"]) for failure in outcome.json[part]["failures"]
    }


def test_built_once_and_installed_everywhere(fleet: PodmanFleet, site: Site, tmp_path: Path) -> None:
    inventory = str(fleet.inventory)
    first, second, third = fleet.nodes
    words = [*TAGS, "--source", f"wheelhouse={site.wheelhouse}", *options(revision=site.first)]
    two = ["--limit", f"{first.name},{second.name}"]
    plan = epdoctor(fleet, tmp_path, "provision", inventory, *words, *two, "--plan")
    assert plan.rc == 0, plan.err + plan.out
    planned = changes(plan.json, "plan")
    builds = [(node, what) for node, what in planned if what.startswith("Build the wheel: DeepEP")]
    assert [node for node, _ in builds] == [first.name]
    for node in fleet.nodes:
        assert node.run(["ls", "/opt/vllm", "/var/cache/epdoctor"], check=False).returncode != 0

    done = epdoctor(fleet, tmp_path, "provision", inventory, *words, *two, "--yes")
    assert done.rc == 0, done.err + done.out
    assert changes(done.json, "applied") == planned
    answer = ["/opt/vllm/bin/python", "-c", "import tiny_ext.answer; print(tiny_ext.answer.answer())"]
    assert [node.run(answer).stdout for node in (first, second)] == ["42\n"] * 2
    # One file, the same everywhere, with the checksum that pip itself noted.
    (wheel,) = (tmp_path / "cache/epdoctor/wheels").glob("tiny-ext-*/*.whl")
    here = subprocess.run(["sha256sum", wheel], capture_output=True, text=True, check=True).stdout.split()[0]
    for node in (first, second):
        noted = node.run(
            ["sh", "-c", "cat /opt/vllm/lib/python3.11/site-packages/tiny_ext-*/direct_url.json"]
        ).stdout
        assert json.loads(noted)["archive_info"]["hashes"]["sha256"] == here
        versions = node.run(["/opt/vllm/bin/python", "-m", "pip", "list", "--format=json"]).stdout
        assert {row["name"]: row["version"] for row in json.loads(versions)}["vllm"] == "0.33.0"
    assert second.run(["ls", "/var/cache/epdoctor/build"], check=False).returncode != 0
    # The system's interpreter has got nothing.
    assert first.run(["find", "/usr/local/lib", "-name", "*.dist-info"]).stdout == ""

    again = epdoctor(fleet, tmp_path, "provision", inventory, *words, *two, "--yes")
    assert again.rc == 0
    assert (changes(again.json, "plan"), again.json["applied"]) == (set(), None)

    # A node that comes later gets the wheel that is there; nothing is built, though its sources are away.
    later = epdoctor(fleet, tmp_path, "provision", inventory, *words, "--yes")
    assert later.rc == 0, later.err + later.out
    assert {node for node, _ in changes(later.json, "applied")} == {third.name}
    assert not [what for _, what in changes(later.json, "applied") if what.startswith("Build")]
    assert third.run(answer).stdout == "42\n"

    # A new commit, and a rollback that says what was there before.
    new = site.commit("1.1")
    site.send(first)
    words = [*TAGS, "--source", f"wheelhouse={site.wheelhouse}", *options(revision=new)]
    newer = epdoctor(fleet, tmp_path, "provision", inventory, *words, *two, "--yes")
    assert newer.rc == 0, newer.err + newer.out
    assert any(what.endswith("into /opt/vllm (before: 1.0)") for _, what in changes(newer.json, "applied"))
    undone = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes", *two)
    assert undone.rc == 0, undone.err + undone.out
    assert "tiny-ext stays in /opt/vllm (before: 1.0)" in undone.out


def test_what_cannot_be_built_is_refused_before_a_change(
    fleet: PodmanFleet, site: Site, tmp_path: Path
) -> None:
    inventory = str(fleet.inventory)
    before = {node.name: snapshot(node) for node in fleet.nodes}

    def refused(*words: str) -> dict[str, tuple[str, str]]:
        done = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--tags", "deepep", *words)
        assert done.rc == 1, done.err + done.out
        assert done.json["applied"] is None
        return errors(done, "plan")

    real = refused("--format", "json")
    assert set(real) == {node.name for node in fleet.nodes}
    task, error = real[fleet.nodes[0].name]
    assert task.endswith("Refuse where no node can build")
    assert "nvcc (looked for /usr/local/cuda/bin/nvcc), torch in /opt/vllm" in error
    one = ("--limit", fleet.nodes[0].name)
    branch = refused(*one, *options(revision="main"))
    assert "a branch names other sources tomorrow" in branch[fleet.nodes[0].name][1]
    system = refused(*one, *options("vllm_venv=/usr", revision="v1"))
    assert "never installs into a system interpreter" in system[fleet.nodes[0].name][1]
    nobody = refused(*one, *options("builder=nobody", revision="v1"))
    assert "no such node in the inventory" in nobody[fleet.nodes[0].name][1]

    # The name that somebody else holds on the package index, and a DeepEP that this vLLM cannot use.
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "deep_ep-1.0.0-py3-none-any.whl").write_bytes(b"")
    squat = refused(*one, "--format", "json", "--source", f"wheelhouse={odd}")
    assert "is the empty package that holds the name" in squat[fleet.nodes[0].name][1]
    (odd / "deep_ep-1.0.0-py3-none-any.whl").rename(odd / "deep_ep-2.5.0-py3-none-any.whl")
    new = refused(*one, "--format", "json", "--source", f"wheelhouse={odd}")
    assert "DeepEP 2.5.0 is too new for vLLM 0.33.0" in new[fleet.nodes[0].name][1]
    assert before == {node.name: snapshot(node) for node in fleet.nodes}


def test_sources_that_are_too_new_and_a_build_that_fails(
    fleet: PodmanFleet, site: Site, tmp_path: Path
) -> None:
    first, second, _ = fleet.nodes
    inventory = str(fleet.inventory)
    (site.repository / "deep_ep").mkdir(exist_ok=True)
    (site.repository / "deep_ep/__init__.py").write_text('__version__ = "2.5.0"\n')
    new = site.commit("2.5")
    (site.repository / "deep_ep/__init__.py").unlink()
    (site.repository / "tiny_ext/answer.c").write_text("#error this is broken\n")
    broken = site.commit("2.6")
    (site.repository / "tiny_ext/answer.c").write_text(ANSWER)
    site.send(first)
    words = ["--yes", "--tags", "deepep", "--limit", f"{first.name},{second.name}"]
    words += ["--source", f"wheelhouse={site.wheelhouse}"]
    done = epdoctor(fleet, tmp_path, "provision", inventory, *words, *options(revision=new))
    assert done.rc == 1, done.err + done.out
    task, error = errors(done, "applied")[first.name]
    assert task.endswith("Refuse sources that are too new")
    assert "DeepEP 2.5.0" in error
    assert "neither Buffer nor ElasticBuffer" in error
    done = epdoctor(fleet, tmp_path, "provision", inventory, *words, *options(revision=broken))
    failed = errors(done, "applied")
    assert failed[first.name][0].endswith("Refuse a build that failed")
    assert "#error this is broken" in failed[first.name][1]
    assert failed[second.name][0].endswith("Refuse to go on without the wheel")
    assert "this is broken" in first.run(["sh", "-c", "cat /var/cache/epdoctor/build/*/build.log"]).stdout
    # Nobody's package was touched.
    for node in (first, second):
        assert (
            "direct_url"
            in node.run(["sh", "-c", "ls /opt/vllm/lib/python3.11/site-packages/tiny_ext-*"]).stdout
        )


@pytest.mark.skipif(
    not os.environ.get("EPDOCTOR_DEEPEP_MIRRORS"), reason="needs git mirrors of DeepEP and fmt"
)
def test_the_real_deepep_up_to_what_needs_torch_and_nvcc(
    fleet: PodmanFleet, site: Site, tmp_path: Path
) -> None:
    """EPDOCTOR_DEEPEP_MIRRORS: a folder with deepseek-ai/DeepEP.git and fmtlib/fmt.git."""
    first = fleet.nodes[0]
    packed = subprocess.run(
        ["tar", "c", "-C", os.environ["EPDOCTOR_DEEPEP_MIRRORS"], "."], check=True, capture_output=True
    ).stdout
    first.run(["mkdir", "-p", "/srv/git"])
    subprocess.run(
        ["podman", "exec", "-i", first.name, "tar", "x", "-C", "/srv/git"], input=packed, check=True
    )
    done = epdoctor(
        fleet, tmp_path, "provision", str(fleet.inventory), "--yes", "--tags", "deepep", "--limit", first.name,
        "--source", "git=/srv/git/", "--source", f"wheelhouse={site.wheelhouse}", "--format", "json",
        "-e", "deepep_build_requires=[git, cxx]",
    )  # fmt: skip
    task, error = errors(done, "applied")[first.name]
    assert task.endswith("Refuse a build that failed")
    assert "No module named 'torch'" in error
    assert first.run(["ls", "/var/cache/epdoctor/src/deep-ep/git/third-party/fmt/include"]).stdout == "fmt\n"


def test_a_bundle_brings_all_to_a_site_without_network(
    fleet: PodmanFleet, site: Site, tmp_path: Path
) -> None:
    """Downloaded where there is a network, installed where there is none."""
    revision = site.commit("3.0")
    bundle = tmp_path / "bundle"
    words = options(revision=revision, url=str(site.repository))
    own = {"XDG_CACHE_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    argv = [
        sys.executable,
        "-m",
        "epdoctor",
        "provision",
        "--bundle",
        str(bundle),
        "--tags",
        "deepep",
        *words,
    ]
    made = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **own}, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=bundle, check=True)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["vllm"], manifest["components"]) == ("0.33.0", ["deepep"])
    assert (bundle / f"packages/tiny-ext-{revision}.tar.gz").exists()
    assert {path.name.partition("-")[0] for path in (bundle / "wheels").iterdir()} == {"ninja", "setuptools"}
    assert {"ansible_core", "epdoctor", "fabric"} <= {
        p.name.partition("-")[0] for p in (bundle / "epdoctor").iterdir()
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".bundle")]

    words = [
        "--yes",
        "--source",
        f"bundle={bundle}",
        *options(revision=revision, url="https://nowhere.invalid/x.git"),
    ]
    done = epdoctor(
        fleet, tmp_path, "provision", str(fleet.inventory), "--limit", fleet.nodes[1].name, *words
    )
    assert done.rc == 0, done.err + done.out
    version = ["/opt/vllm/bin/python", "-c", "import tiny_ext; print(tiny_ext.__version__)"]
    assert fleet.nodes[1].run(version).stdout == "3.0\n"

    archive = bundle / f"packages/tiny-ext-{revision}.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"x")
    bad = epdoctor(fleet, tmp_path, "provision", str(fleet.inventory), *words)
    assert bad.rc == 2
    assert "has a wrong checksum" in bad.err


SECRET = "correct-horse-4711"


def watched(stop: threading.Event, seen: set[str]) -> None:
    """Every command line and environment of this machine and of its containers, while it lasts."""
    while not stop.is_set():
        for folder in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    text = (folder / name).read_bytes()
                except OSError:
                    continue
                if SECRET.encode() in text:
                    seen.add(f"{name}: {text[:300]!r}")
        stop.wait(0.02)


def test_the_become_password_is_nowhere_to_be_seen(fleet: PodmanFleet, tmp_path: Path) -> None:
    node = fleet.nodes[2]
    make_user = """useradd -m -s /bin/sh admin; mkdir -p /home/admin/.ssh
        cp /root/.ssh/authorized_keys /home/admin/.ssh/; chown -R admin /home/admin/.ssh; chpasswd"""
    node.run(["sh", "-c", make_user], text=f"admin:{SECRET}\n")
    node.write("/etc/sudoers.d/admin", "admin ALL=(ALL) ALL\n")
    text = fleet.inventory.read_text().replace("ansible_user=root", "ansible_user=admin")
    inventory = tmp_path / "site/inventory.ini"
    (inventory.parent / "group_vars/all").mkdir(parents=True)
    inventory.write_text(text)
    words = [str(inventory), "--yes", "--tags", "limits", "--limit", node.name, "--format", "json"]

    refused = epdoctor(fleet, tmp_path, "provision", *words)
    assert refused.rc == 1
    assert "--become-password-file" in epdoctor(fleet, tmp_path, "provision", *words[:-2]).out

    (tmp_path / "vault-password").write_text("open sesame\n")
    ansible_vault = [str(Path(sys.executable).parent / "ansible-vault"), "encrypt", "--output"]
    ansible_vault += [str(inventory.parent / "group_vars/all/vault.yml"), "--vault-password-file"]
    vault = [*ansible_vault, str(tmp_path / "vault-password"), "-"]
    subprocess.run(
        vault, input=f"ansible_become_password: {SECRET}\n", text=True, check=True, capture_output=True
    )
    (tmp_path / "password").write_text(f"{SECRET}\n")
    locked = epdoctor(fleet, tmp_path, "provision", *words)
    assert locked.rc == 2
    stop, seen = threading.Event(), set[str]()
    watcher = threading.Thread(target=watched, args=(stop, seen))
    watcher.start()
    try:
        by_vault = epdoctor(
            fleet, tmp_path, "provision", *words, "--vault-password-file", str(tmp_path / "vault-password")
        )
        (inventory.parent / "group_vars/all/vault.yml").unlink()
        rolled = epdoctor(
            fleet, tmp_path, "rollback", str(inventory), "--yes", "--limit", node.name,
            "--become-password-file", str(tmp_path / "password"),
        )  # fmt: skip
    finally:
        stop.set()
        watcher.join()
    assert by_vault.rc == 3, by_vault.err + by_vault.out  # ssh runs with its old limit
    assert changes(by_vault.json, "applied")
    assert rolled.rc == 0, rolled.err + rolled.out
    assert seen == set()
    logs = [path.read_text() for path in (tmp_path / "state").rglob("*.log")]
    assert logs
    assert not [
        text for text in (*logs, by_vault.out, by_vault.err, rolled.out, rolled.err) if SECRET in text
    ]


def test_batches(fleet: PodmanFleet, tmp_path: Path) -> None:
    """One node of the first batch fails for itself; where a whole batch fails, the next is not begun."""
    first, second, third = fleet.nodes
    inventory = str(fleet.inventory)
    words = ["--yes", "--tags", "limits", "--format", "json", "--serial"]

    def broken(*nodes: ContainerNode) -> None:
        for node in fleet.nodes:
            node.run(["rm", "-rf", "/var/lib/epdoctor"])
            if node in nodes:
                # A plan cannot see that the journal's folder cannot be made.
                node.write("/var/lib/epdoctor", "in the way\n")

    try:
        broken(first)
        some = epdoctor(fleet, tmp_path, "provision", inventory, *words, "2")
        assert some.rc == 1, some.err + some.out
        cells = some.json["applied"]["components"]["limits"]
        assert cells == {first.name: "failed", second.name: "change", third.name: "change"}
        assert (
            epdoctor(
                fleet, tmp_path, "rollback", inventory, "--yes", "--limit", f"{second.name},{third.name}"
            ).rc
            == 0
        )
        broken(first, second)
        stopped = epdoctor(fleet, tmp_path, "provision", inventory, *words, "2")
        cells = stopped.json["applied"]["components"]["limits"]
        assert cells == {first.name: "failed", second.name: "failed", third.name: "not-tried"}
    finally:
        broken()


def test_words_that_are_wrong_touch_no_node(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory = str(fleet.inventory)
    (tmp_path / "empty.ini").write_text("[nodes]\n")
    for words, said in (
        ([], "name an inventory"),
        (["no.ini"], "does not exist"),
        (["empty.ini"], "no"),
        ([inventory, "--tags", "deepeep"], "did you mean deepep"),
        ([inventory, "--profile", "bringup"], "did you mean bring-up"),
        ([inventory, "-e", "vllm_ven=/x"], "did you mean vllm_venv"),
        ([inventory, "--vllm", "0.1"], "before 0.12.0"),
        ([inventory, "--serial", "0"], "a number of nodes"),
        ([inventory, "--limit", "nobody"], "nobody"),
        ([inventory, "-K"], "no terminal"),
        ([inventory, "--vault-password-file", "no"], "cannot be read"),
        (["--bundle", "."], "not an empty folder"),
    ):
        done = epdoctor(fleet, tmp_path, "provision", *words)
        assert done.rc == 2, words
        assert said in done.err, done.err
        assert "Traceback" not in done.err
