"""What an air-gapped site would have: real debs and wheels, fetched once by this machine's own apt and pip."""

import fcntl
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab.containers import ContainerNode
from tests.lab.requirements import cache_dir

WHEELS = ("nvidia-nvshmem-cu13==3.4.5", "nixl==1.5.0", "nixl-cu13==1.5.0", "nvidia-nccl-cu13==2.30.7")
DEBS = (
    "rdma-core", "libibverbs1", "ibverbs-providers", "ibverbs-utils", "librdmacm1", "perftest", "infiniband-diags",
    "libucx0", "ucx-utils",
)  # fmt: skip


def write_sums(folder: Path) -> None:
    """SHA256SUMS of every file, as sha256sum writes it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def link_into(folder: Path, paths: Sequence[Path]) -> Path:
    """A folder of its own over files of the cache, with sums."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (folder / path.name).symlink_to(path)
    write_sums(folder)
    return folder


def real_wheels(python: str, specs: Sequence[str] = WHEELS) -> list[Path]:
    """The wheels for a node's Python ("3.11"), kept in the cache."""
    folder = cache_dir() / f"wheels-{python}"
    folder.mkdir(exist_ok=True)
    found = []
    with (cache_dir() / "wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for spec in specs:
            pattern = spec.replace("-", "_").replace("==", "-") + "-*.whl"
            if not list(folder.glob(pattern)):
                argv = [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--no-deps",
                    "--quiet",
                    "--dest",
                    str(folder),
                ]
                argv += ["--only-binary", ":all:", "--python-version", python, spec]
                subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300)
            found += list(folder.glob(pattern))
    return found


def real_debs(node: ContainerNode) -> list[Path]:
    """The packages of DEBS with all that this node lacks for them, kept in the cache."""
    folder = cache_dir() / "debs"
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "debs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.deb")):
            status = folder / "status"
            status.write_text(node.read("/var/lib/dpkg/status"))
            options = {
                "Dir::State::status": status, "Dir::Cache::archives": folder,
                "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
            }  # fmt: skip
            argv = ["apt-get", "install", "-qq", "-y", "--download-only", "--no-install-recommends"]
            argv += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
            subprocess.run([*argv, *DEBS], check=True, capture_output=True, text=True, timeout=300)
    return sorted(folder.glob("*.deb"))


def flat_mirror(folder: Path) -> None:
    """The Packages index that apt reads, made as dpkg-scanpackages would."""
    out = []
    for path in sorted(folder.glob("*.deb")):
        fields = subprocess.run(
            ["dpkg-deb", "-f", str(path)], check=True, capture_output=True, text=True
        ).stdout
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        out.append(f"{fields.strip()}\nFilename: ./{path.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    (folder / "Packages").write_text("\n".join(out))


def stand_in_deb(folder: Path, name: str, version: str, path: str) -> None:
    """A deb of the tests' own that brings one empty file: no mirror here has GDRCopy's."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: epdoctor tests <tests@example.org>\n"
        "Description: stand-in of epdoctor's tests\n"
    )
    target = tree / path.lstrip("/")
    target.parent.mkdir(parents=True)
    target.write_text("")
    argv = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(folder / f"{name}_{version}_all.deb")]
    subprocess.run(argv, check=True, capture_output=True)
    subprocess.run(["rm", "-r", str(tree)], check=True)


def stand_in_wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> Path:
    """A wheel without content: an older version to replace, or something that drags one in."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {require}\n" for require in requires)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def make_venv(node: ContainerNode, pip_wheel: Path, wheels: Sequence[Path] = ()) -> None:
    """/opt/vllm with pip and these wheels, from files alone."""
    node.run(["python3", "-m", "venv", "--without-pip", "/opt/vllm"])
    node.run(["mkdir", "-p", "/root/site"])
    for path in (pip_wheel, *wheels):
        subprocess.run(["podman", "cp", str(path), f"{node.name}:/root/site/"], check=True)
    pip = f"/root/site/{pip_wheel.name}/pip"
    files = [f"/root/site/{path.name}" for path in (pip_wheel, *wheels)]
    node.run(["/opt/vllm/bin/python", pip, "install", "--quiet", "--no-index", "--no-deps", *files])
