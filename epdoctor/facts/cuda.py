"""CUDA toolkits under /usr/local: what a run-time compiler (DeepEP 2, DeepGEMM) finds without CUDA_HOME."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Links, Probe, Source, Stat

if TYPE_CHECKING:
    from epdoctor.facts import Node

DEFAULT_HOME = "/usr/local/cuda"


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """Files only: nvcc is never run."""
    del options
    return (
        Files(
            name="cuda.versions",
            globs=("/usr/local/cuda*/version.json", "/usr/local/cuda*/version.txt"),
            max_file_bytes=16384,
        ),
        Links(name="cuda.links", globs=("/usr/local/cuda", "/usr/local/cuda-*", "/etc/alternatives/cuda*")),
        Stat(
            name="cuda.files",
            globs=(
                "/usr/local/cuda*/bin/nvcc",
                "/usr/local/cuda*/lib64/stubs/libcuda.so",
                "/usr/local/cuda*/targets/*/lib/stubs/libcuda.so",
                "/usr/bin/nvcc",
                "/usr/local/bin/nvcc",
            ),
        ),
    )


@dataclass(frozen=True)
class Toolkit:
    """One CUDA toolkit directory. The path may be a link; `real_path` names what it leads to."""

    path: str
    real_path: str
    """`path` with its links followed as far as the record holds them."""
    version: str
    """From version.json ("13.0.1"), version.txt, or the directory's name; empty if none tells."""
    nvcc: bool
    """bin/nvcc is there."""
    stub: bool
    """stubs/libcuda.so is there (needed to build DeepEP on a machine without a driver)."""


@dataclass(frozen=True)
class CudaFacts:
    """Toolkits by path, /usr/local/cuda first."""

    toolkits: tuple[Toolkit, ...]
    system_nvcc: tuple[str, ...]
    """nvcc files outside of toolkits that PATH normally holds (/usr/bin/nvcc of a distribution)."""

    @property
    def default(self) -> Toolkit | None:
        """/usr/local/cuda, what programs take where CUDA_HOME is unset and nvcc is not on PATH."""
        return next((toolkit for toolkit in self.toolkits if toolkit.path == DEFAULT_HOME), None)

    def toolkit_at(self, path: str) -> Toolkit | None:
        """The toolkit of a CUDA_HOME value, or None."""
        wanted = path.rstrip("/")
        return next(
            (toolkit for toolkit in self.toolkits if wanted in (toolkit.path, toolkit.real_path)), None
        )


def _follow(path: str, links: dict[str, str]) -> str:
    for _ in range(8):
        target = links.get(path)
        if target is None:
            break
        path = target if target.startswith("/") else path.rpartition("/")[0] + "/" + target
    return path


def _json_version(text: str) -> str:
    try:
        found: Any = json.loads(text)
        return str(found["cuda"]["version"])[:32]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _version(home: str, real: str, texts: dict[str, str]) -> str:
    for place in (home, real):
        version = _json_version(texts.get(place + "/version.json", ""))
        if version:
            return version
        # CUDA 10 and older: "CUDA Version 10.2.89"
        words = texts.get(place + "/version.txt", "").split()
        if words[:2] == ["CUDA", "Version"] and len(words) > 2:
            return words[2][:32]
    tail = real.rpartition("/cuda-")[2]
    return tail[:32] if tail and tail != real and tail[0].isdigit() else ""


def parse(source: Source) -> CudaFacts:
    """Unmeasured where the files were not looked at."""
    stats = source.stats("cuda.files")
    texts = dict(source.files("cuda.versions"))
    links = source.links("cuda.links")
    homes = {path.rpartition("/")[0] for path in texts}
    homes |= {path[: -len("/bin/nvcc")] for path in stats if path.endswith("/bin/nvcc")}
    homes |= {
        path.partition("/lib64/")[0].partition("/targets/")[0]
        for path in stats
        if path.endswith("libcuda.so")
    }
    homes = {home for home in homes if home.startswith(DEFAULT_HOME)}
    toolkits = []
    for home in sorted(homes, key=lambda path: (path != DEFAULT_HOME, path)):
        real = _follow(home, links)
        stub = any(path.startswith(home + "/") and path.endswith("stubs/libcuda.so") for path in stats)
        toolkits.append(Toolkit(home, real, _version(home, real, texts), home + "/bin/nvcc" in stats, stub))
    outside = tuple(path for path in ("/usr/local/bin/nvcc", "/usr/bin/nvcc") if path in stats)
    return CudaFacts(tuple(toolkits), outside)


def _default_version(node: Node) -> str | None:
    found = node.cuda.default
    if found is None:
        return None
    if not found.version:
        raise Unmeasured(f"{found.path}: no version.json")
    return found.version


DIGEST: dict[str, Callable[[Node], Any]] = {"cuda.toolkit": _default_version}
