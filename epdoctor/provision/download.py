"""Filling a bundle: pip for wheels, git for sources, apt for debs. Each is the ordinary client, with the user's
own configuration (index, proxy, credentials)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.provision.bundle import GitSource

TIMEOUT_S = 7200
_GLIBC_NEWEST = 34
"""RHEL 9 has glibc 2.34, the oldest of the supported systems."""
_GLIBC_OLDEST = 5
"""manylinux1 is glibc 2.5 (PEP 513)."""


@dataclass(frozen=True)
class Machine:
    """The nodes that a bundle is for."""

    python: str
    """ "3.12" """
    arch: str
    """ "x86_64" | "aarch64" """

    @property
    def is_this(self) -> bool:
        return self == this_machine()


def this_machine() -> Machine:
    return Machine(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())


def _run(
    argv: Sequence[str], what: str, hint: str, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    try:
        done = subprocess.run(
            argv, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=TIMEOUT_S,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EpdoctorError(f"{what}: {argv[0]} is not installed", hint=f"install {argv[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise EpdoctorError(f"{what}: it took longer than {TIMEOUT_S} s", hint=hint) from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("error", "fatal", "e: "))]
        raise EpdoctorError(
            f"{what}: {(errors or lines or ['it ended without a word'])[-1][:400]}", hint=hint
        )
    return done.stdout


def wheels(
    requirements: Sequence[str], folder: Path, machine: Machine, *, dependencies: bool, index: str = ""
) -> None:
    """Download wheels. For this machine's own kind, what has no wheel is built; for another, that is an error.

    Raises EpdoctorError with pip's own words."""
    if not requirements:
        return
    pip = [sys.executable, "-m", "pip"]
    common = [
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        *([] if dependencies else ["--no-deps"]),
    ]
    common += ["--index-url", index] if index else []
    if machine.is_this:
        argv = [*pip, "wheel", *common, "--wheel-dir", str(folder)]
    else:
        argv = [*pip, "download", *common, "--dest", str(folder), *_tags(machine)]
    named = ", ".join(requirements[:4])
    hint = f"pip download {requirements[0]}  shows more; --source index=URL names another index"
    _run([*argv, "--", *requirements], f"wheels of {named}", hint)


def _tags(machine: Machine) -> list[str]:
    """pip's words for a foreign machine: every older manylinux too, which pip does not add by itself."""
    short = machine.python.replace(".", "")
    words = ["--only-binary=:all:", "--python-version", machine.python, "--implementation", "cp"]
    for abi in (f"cp{short}", "abi3", "none"):
        words += ["--abi", abi]
    for minor in range(_GLIBC_NEWEST, _GLIBC_OLDEST - 1, -1):
        words += ["--platform", f"manylinux_2_{minor}_{machine.arch}"]
    for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux"):
        words += ["--platform", f"{old}_{machine.arch}"]
    return words


def git_archive(source: GitSource, folder: Path, prefix: str = "") -> Path:
    """packages/NAME.tar.gz of a repository at a commit, with its submodules. `prefix` stands for
    https://github.com/. Raises EpdoctorError with git's own words."""
    rewrite = {"GIT_TERMINAL_PROMPT": "0"}
    if prefix:
        rewrite |= {
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": f"url.{prefix}.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/",
            # A mirror that is a folder serves submodules too (git 2.38.1 forbids that unless told).
            "GIT_CONFIG_KEY_1": "protocol.file.allow",
            "GIT_CONFIG_VALUE_1": "always",
        }
    what = f"sources of {source.name}"
    hint = f"git clone {source.url}  shows more; --source git=URLPREFIX names a mirror"
    with tempfile.TemporaryDirectory(prefix="epd-") as scratch:
        tree = Path(scratch) / source.name
        _run(
            ["git", "clone", "--quiet", "--no-checkout", "--", source.url, str(tree)], what, hint, env=rewrite
        )
        _run(["git", "checkout", "--quiet", "--detach", source.revision], what, hint, cwd=tree, env=rewrite)
        _run(
            ["git", "submodule", "--quiet", "update", "--init", "--recursive"],
            what,
            hint,
            cwd=tree,
            env=rewrite,
        )
        # History is not needed to build, and a submodule's points out of the archive.
        for path in [*tree.rglob(".git")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        target = folder / f"{source.name}.tar.gz"
        with tarfile.open(target, "w:gz") as tar:
            tar.add(tree, arcname=source.name)
    return target


def debs(names: Sequence[str], folder: Path) -> None:
    """The packages with all that they need, as this machine's apt would fetch them.

    Raises UsageError on a machine without apt, EpdoctorError with apt's own words."""
    if not names:
        return
    if shutil.which("apt-get") is None:
        raise UsageError(
            f"packages of the distribution ({names[0]} ...) need apt on this machine",
            hint="make the bundle on a machine like the nodes, or leave the component out: --skip-tags rdma",
        )
    leave = [
        f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    text = _run(["apt-cache", "depends", "--recurse", *leave, *names], "debs", "apt-get update")
    found = sorted({line.strip() for line in text.splitlines() if line and line[0] not in " |<"})
    # Another architecture's package has its name behind a colon; virtual packages are in <>.
    wanted = [name for name in found if ":" not in name]
    _run(
        ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *wanted],
        "debs",
        "apt-get update",
        cwd=folder,
    )


def epdoctor_wheel(folder: Path) -> Path:
    """epdoctor's own wheel, put together again from the installed files. Raises EpdoctorError."""
    from epdoctor import __version__

    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        argv = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(root),
        ]
        _run(argv, "epdoctor's own wheel", f"pip wheel --no-deps {root}")
        return next(folder.glob("epdoctor-*.whl"))
    distribution = importlib.metadata.distribution("epdoctor")
    target = folder / f"epdoctor-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in distribution.files or ():
            # Scripts (../../bin) and what the installer adds are no part of a wheel.
            if (
                ".." in file.parts
                or file.suffix == ".pyc"
                or file.name in ("INSTALLER", "REQUESTED", "direct_url.json")
            ):
                continue
            if file.name == "RECORD":
                rows = [row for row in (file.read_text() or "").splitlines() if not row.startswith("..")]
                kept = [
                    row
                    for row in rows
                    if not row.split(",")[0].endswith((".pyc", "INSTALLER", "REQUESTED", "direct_url.json"))
                ]
                wheel.writestr(str(file), "\n".join(kept) + "\n")
            else:
                wheel.write(str(file.locate()), str(file))
    return target
