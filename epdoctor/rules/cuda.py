"""Rules about the CUDA toolkit that run-time compilation needs."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.cuda import DEFAULT_HOME
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.driver import version_tuple


def cuda_home(node: Node) -> tuple[str, str]:
    """(path, source) of CUDA_HOME or CUDA_PATH of a running worker; ("", "") where none sets it."""
    try:
        workers = node.processes.workers
    except Unmeasured:
        return "", ""
    for worker in workers:
        for name in ("CUDA_HOME", "CUDA_PATH"):
            environ = worker.environ
            value = "" if isinstance(environ, Unmeasured) else environ.get(name)
            if value:
                return str(value), f"{name} of process {worker.pid}"
    return "", ""


@node_rule
def nvcc_present(node: Node) -> Iterator[Problem]:
    """nvcc is where the back end looks: CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda."""
    home, source = cuda_home(node)
    if home:
        toolkit = node.cuda.toolkit_at(home)
        if toolkit is not None and toolkit.nvcc:
            return
        if not home.startswith(DEFAULT_HOME):
            raise Unmeasured(f"{source} is {home[:100]}, which epdoctor does not look into")
        yield Problem(f"no nvcc in {home[:100]} ({source})", f"{home[:100]}/bin/nvcc")
        return
    default = node.cuda.default
    if node.cuda.system_nvcc or (default is not None and default.nvcc):
        return
    others = [toolkit.path for toolkit in node.cuda.toolkits if toolkit.nvcc]
    if others:
        yield Problem(
            f"nvcc in {', '.join(others[:4])}, but not in {DEFAULT_HOME} and no CUDA_HOME",
            f"{DEFAULT_HOME}/bin/nvcc, or CUDA_HOME",
            now=(f"export CUDA_HOME={others[-1]}   # for the vLLM process",),
        )
    else:
        yield Problem("no nvcc", f"{DEFAULT_HOME}/bin/nvcc, or CUDA_HOME")


@node_rule
def toolkit_not_newer_than_driver(node: Node) -> Iterator[Problem]:
    """The toolkit's major version is one that the driver can run (minor versions are compatible)."""
    home, _ = cuda_home(node)
    toolkit = node.cuda.toolkit_at(home) if home else node.cuda.default
    if toolkit is None or not toolkit.nvcc:
        raise NotApplicable("no CUDA toolkit")
    if not toolkit.version:
        raise Unmeasured(f"{toolkit.path}: no version.json")
    driver = require(node.gpu.cuda_driver_version)
    if version_tuple(toolkit.version)[0] > driver[0]:
        yield Problem(f"{toolkit.path} is CUDA {toolkit.version}, the driver runs {driver[0]}.{driver[1]}",
                      f"CUDA {driver[0]}.x")  # fmt: skip
