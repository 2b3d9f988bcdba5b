"""The Python environment that serves vLLM, from the names of metadata folders: nothing is imported.

The target interpreter is --python, else that of a running vLLM process, else the one place that holds vLLM.
Where several places hold it and nobody chose, the facts are unknown and name the places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Probe, Script, Source
from epdoctor.facts.partial_env import PartialPackages

if TYPE_CHECKING:
    from epdoctor.facts import Node

DISTRIBUTIONS = (
    "vllm", "torch", "deep-ep", "deepinfer-ep", "sgl-deep-ep", "tokenspeed-deepep", "deep-gemm",
    "deepinfer-gemm", "flashinfer-python", "flashinfer-cubin", "nixl", "nixl-cu12", "nixl-cu13",
    "nvidia-nccl-cu12", "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu12", "nvidia-nvshmem-cu13", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime-cu13", "triton", "ray", "lmcache", "mooncake-transfer-engine",
    "mooncake-transfer-engine-cuda13", "mooncake-transfer-engine-efa-cuda13", "pplx-kernels", "amd-mori",
    "transformers", "numpy", "psutil", "nvidia-ml-py", "pynvml", "uccl", "moonep", "compressed-tensors",
)  # fmt: skip
LIBRARIES = ("libnccl.so", "libnvshmem_host.so", "libucp")

GENERATIONS = {
    frozenset({"Buffer"}): "1",
    frozenset({"Buffer", "ElasticBuffer"}): "2.0",
    frozenset({"EPBuffer"}): "2.5",
}
"""Classes of deep_ep/__init__.py (deepseek-ai/DeepEP v1.2.1, d4f41e4e, dd758caf; deepinfer-ep 2.5.0)."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Script(
            name="python_env.scan",
            script="python_env.py",
            modules=("software.py",),
            params={"python": options.python, "distributions": DISTRIBUTIONS, "libraries": LIBRARIES},
            timeout_s=15.0,
        ),
    )


@dataclass(frozen=True)
class DeepEPModule:
    """The package `deep_ep` as its files show it."""

    path: str
    classes: frozenset[str]
    """Of Buffer, ElasticBuffer, EPBuffer: those that __init__.py imports."""
    version: str
    """From __version__ or the owning distribution; empty: not told (V1 tells none)."""
    empty: bool
    """An __init__.py with nothing in it."""

    @property
    def generation(self) -> str:
        """1 | 2.0 | 2.5, or empty where the classes fit none. Generations: checks/compat/deepep.yaml."""
        return GENERATIONS.get(self.classes, "")

    @property
    def described(self) -> str:
        number = self.version or (f"V{self.generation}" if self.generation else "of unknown version")
        return f"deep_ep {number} with {', '.join(sorted(self.classes)) or 'no buffer class'} in {self.path}"


@dataclass(frozen=True)
class PipLibrary:
    path: str
    macros: Mapping[str, str]


@dataclass(frozen=True)
class PythonEnv:
    prefix: str
    """Folder of the environment: /opt/venv."""
    chosen_by: str
    """--python | running vLLM (pid N) | the only one found"""
    python_version: str
    """3.12 or 3.12.3; empty: not told."""
    packages: Mapping[str, str]
    """Canonical distribution name -> version, for the distributions above."""
    deepep: DeepEPModule | None
    deepep_owners: tuple[tuple[str, str], ...]
    """Distributions whose file list holds the module deep_ep: (name, version)."""
    libraries: tuple[PipLibrary, ...]
    """NCCL, NVSHMEM and UCX libraries that wheels brought."""
    deepep_elsewhere: tuple[str, ...] = ()
    """Other environments of this node that hold deep_ep."""

    @property
    def python(self) -> str:
        """The interpreter to type in a command."""
        return (
            f"{self.prefix}/bin/python3"
            if self.prefix in ("/usr", "/usr/local")
            else f"{self.prefix}/bin/python"
        )

    def version(self, distribution: str) -> str | None:
        """Version of a distribution, with its local part ("2.14.0+cu130"); None: not installed."""
        return self.packages.get(distribution)

    def first(self, *distributions: str) -> tuple[str, str] | None:
        """(name, version) of the first of these distributions that is installed."""
        for name in distributions:
            if name in self.packages:
                return name, self.packages[name]
        return None

    @property
    def cuda_major(self) -> int | None:
        """Of torch's CUDA, told by its local version (+cu130) or its NCCL wheel; None: not told."""
        local = self.packages.get("torch", "").partition("+cu")[2]
        if local[:2].isascii() and local[:2].isdigit():
            return int(local[:2])
        majors = [major for major in (12, 13) if f"nvidia-nccl-cu{major}" in self.packages]
        return majors[0] if len(majors) == 1 else None


_UNNAMED = "the environment that collect_env describes"


class _PartialEnv(PythonEnv):
    """Told by a text that names some versions only (epdoctor/collect/collect_env.py)."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("deepep", "deepep_owners", "deepep_elsewhere"):
            raise Unmeasured("collect_env does not tell whether DeepEP is installed")
        if name == "libraries":
            raise Unmeasured("collect_env does not tell which libraries the wheels brought")
        if name == "python":
            return "python"
        return super().__getattribute__(name)


def _deepep(value: object, owners: tuple[tuple[str, str], ...]) -> DeepEPModule | None:
    if not isinstance(value, dict):
        return None
    classes = value.get("classes")
    version = str(value.get("version") or "")
    if not version and len(owners) == 1:
        version = owners[0][1]
    return DeepEPModule(
        path=str(value.get("path", "")),
        classes=frozenset(str(name) for name in classes) if isinstance(classes, list) else frozenset(),
        version=version,
        empty=bool(value.get("empty")),
    )


def _environment(entry: Mapping[str, Any], chosen_by: str) -> PythonEnv:
    packages = entry.get("packages")
    rows = entry.get("owners")
    owners = tuple(
        (str(row[0]), str(row[1]))
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, list) and len(row) == 2
    )
    libraries = entry.get("libraries")
    if isinstance(entry.get("partial"), str):
        told = {str(k): str(v) for k, v in packages.items()} if isinstance(packages, dict) else {}
        version = str(entry.get("version", ""))
        return _PartialEnv(
            _UNNAMED, chosen_by, version, PartialPackages(told, entry["partial"][:80]), None, (), ()
        )
    return PythonEnv(
        prefix=str(entry.get("prefix", "")),
        chosen_by=chosen_by,
        python_version=str(entry.get("version", "")),
        packages={str(k): str(v) for k, v in packages.items()} if isinstance(packages, dict) else {},
        deepep=_deepep(entry.get("deep_ep"), owners),
        deepep_owners=owners,
        libraries=tuple(
            PipLibrary(str(row[0]), {str(k): str(v) for k, v in row[1].items()})
            for row in (libraries if isinstance(libraries, list) else ())
            if isinstance(row, list) and len(row) == 2 and isinstance(row[1], dict)
        ),
    )


def _holds(entry: Mapping[str, Any], *names: str) -> bool:
    packages = entry.get("packages")
    return isinstance(packages, dict) and any(name in packages for name in names)


def nothing_found(source: Source) -> bool:
    """Whether the search ran to its end and found no environment with vLLM, DeepEP or torch."""
    return "searched" in source.values("python_env.scan") and not any(
        row[0] == "candidate" for row in source.rows("python_env.scan")
    )


def parse(source: Source) -> PythonEnv:
    """Raises Unmeasured where no environment, or several and no choice, were found."""
    chosen = _chosen(source)
    others = {
        str(row[1].get("prefix", ""))
        for row in source.rows("python_env.scan")
        if row[0] == "candidate" and len(row) > 1 and isinstance(row[1], dict) and row[1].get("deep_ep")
    }
    if isinstance(chosen, _PartialEnv):
        return chosen
    return replace(chosen, deepep_elsewhere=tuple(sorted(others - {chosen.prefix, ""})))


def _chosen(source: Source) -> PythonEnv:
    rows = source.rows("python_env.scan")
    values = source.values("python_env.scan")
    if "missing" in values:
        raise Unmeasured(f"{values['missing']} (--python) does not exist on this node")
    entries = [row[1] for row in rows if row[0] == "candidate" and len(row) > 1 and isinstance(row[1], dict)]
    for entry in entries:
        if entry.get("why") == "--python":
            return _environment(entry, "--python")
    running = [entry for entry in entries if str(entry.get("why", "")).startswith("running")]
    best = running or [entry for entry in entries if _holds(entry, "vllm")]
    what = "vLLM"
    if not best:
        what = "DeepEP or torch"
        best = [entry for entry in entries if entry.get("deep_ep") or _holds(entry, "torch")]
    if not best:
        raise Unmeasured("no Python environment with vLLM, DeepEP or torch found; name it with --python")
    # The same image in several containers is one answer.
    same = all(
        (entry.get("prefix"), entry.get("packages"), entry.get("deep_ep"))
        == (best[0].get("prefix"), best[0].get("packages"), best[0].get("deep_ep"))
        for entry in best
    )
    if not same:
        places = ", ".join(str(entry.get("prefix", "")) for entry in best[:6])
        raise Unmeasured(f"several Python environments with {what}: {places}; choose with --python")
    return _environment(best[0], str(best[0]["why"]) if running else "the only one found")


def _version(*distributions: str) -> Callable[[Node], str]:
    def value(node: Node) -> str:
        if nothing_found(node.source):
            return "no environment found"
        found = node.python_env.first(*distributions)
        return (
            f"{found[0]} {found[1]}"
            if found and len(distributions) > 1
            else found[1]
            if found
            else "not installed"
        )

    return value


def _deepep_text(node: Node) -> str:
    if nothing_found(node.source):
        return "no environment found"
    environment = node.python_env
    if environment.deepep is None:
        return "not installed"
    owner = "+".join(f"{name} {version}" for name, version in environment.deepep_owners)
    return (
        f"{environment.deepep.version or '?'} ({', '.join(sorted(environment.deepep.classes)) or 'no class'})"
        + (f" from {owner}" if owner else "")
    )


def _interpreter_version(node: Node) -> str | None:
    return None if nothing_found(node.source) else node.python_env.python_version or None


DIGEST: dict[str, Callable[[Node], Any]] = {
    "python.vllm": _version("vllm"),
    "python.torch": _version("torch"),
    "python.nixl": _version("nixl-cu13", "nixl-cu12", "nixl"),
    "python.deepep": _deepep_text,
    "python.interpreter-version": _interpreter_version,
}
