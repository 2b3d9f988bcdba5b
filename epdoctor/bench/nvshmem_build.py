"""How to compile against the NVSHMEM of a node: its nvcc, headers and libraries, from its facts."""

from __future__ import annotations

from typing import Any

from epdoctor.bench.ladder import Bench
from epdoctor.exceptions import Unmeasured


def build_plan(bench: Bench, name: str) -> dict[str, Any]:
    """{"nvcc", "flags"} for this node. Raises Unmeasured, saying which package brings what is missing."""
    node = bench.nodes[name]
    nvcc = _nvcc(bench, name)
    home = ""
    for library in node.python_env.libraries:
        folder, _, file = library.path.rpartition("/")
        if file.startswith("libnvshmem_host.so") and folder.endswith("/lib"):
            home = folder.removesuffix("/lib")
    if not home:
        raise Unmeasured("no NVSHMEM in the target interpreter (pip install nvidia-nvshmem-cu13)")
    gpus = node.gpu.gpus
    capability = gpus[0].compute_capability
    if isinstance(capability, Unmeasured):
        raise capability
    arch = f"{capability[0]}{capability[1]}"
    return {
        "nvcc": nvcc,
        "flags": [
            "-rdc=true", f"-gencode=arch=compute_{arch},code=sm_{arch}", f"-I{home}/include", f"-L{home}/lib",
            "-l:libnvshmem_host.so.3", "-lnvshmem_device", f"-Xlinker=-rpath={home}/lib", "-lcuda",
        ],
    }  # fmt: skip


def _nvcc(bench: Bench, name: str) -> str:
    cuda = bench.nodes[name].cuda
    toolkit = cuda.default
    for one in ([toolkit] if toolkit is not None else []) + list(cuda.toolkits):
        if one.nvcc:
            return f"{one.path}/bin/nvcc"
    if cuda.system_nvcc:
        return cuda.system_nvcc[0]
    raise Unmeasured("no nvcc (package cuda-nvcc of the CUDA toolkit)")
