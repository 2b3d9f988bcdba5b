"""What a lab needs from the machine, and how to say that it is absent."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class LabError(RuntimeError):
    """The lab started and then failed: a bug or a broken machine, never a reason to skip."""


def find_program(name: str) -> str | None:
    """Absolute path of a program, also where ``sbin`` is not on PATH; None when it is absent."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(SBIN))


def missing(programs: Iterable[tuple[str, str]], *, kernel: Iterable[str] = ()) -> str | None:
    """Say what a lab lacks here, or None.

    ``programs`` are pairs of program and Debian package, ``kernel`` names file systems that
    /proc/filesystems must list. The text names the missing thing and the command that brings it.
    """
    if os.geteuid() != 0:
        return "needs root (network namespaces and mounts)"
    absent = [(program, package) for program, package in programs if find_program(program) is None]
    if absent:
        names = ", ".join(program for program, _ in absent)
        packages = " ".join(dict.fromkeys(package for _, package in absent))
        return f"missing {names}: apt-get install -y --no-install-recommends {packages}"
    known = Path("/proc/filesystems").read_text().split()
    lacking = [name for name in kernel if name not in known]
    if lacking:
        return f"this kernel has no {', '.join(lacking)}"
    return None


@functools.cache
def namespaces_refused() -> str | None:
    """Why root may not make namespaces here (a container without CAP_SYS_ADMIN), or None."""
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return f"cannot make namespaces (CAP_SYS_ADMIN): {done.stderr.strip()[-200:]}"


def cache_dir() -> Path:
    """Where images that are dear to build are kept between runs; made on first use."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "epdoctor-lab"
    path.mkdir(parents=True, exist_ok=True)
    return path
