"""Copies of EP's shared libraries and the one that a vLLM worker takes.

Strongest evidence first: mapped by a running worker, LD_PRELOAD, then the loader's search. torch's CUDA
wheels carry a DT_RPATH to nvidia/*/lib, which comes before LD_LIBRARY_PATH (ld.so(8)), so for NCCL the
wheel's copy wins; DeepEP carries a DT_RUNPATH (setup.py: -Wl,-rpath), which comes after it, so for NVSHMEM
LD_LIBRARY_PATH wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import processes, python_env
from epdoctor.facts.base import CollectOptions, Probe, Script, Source
from epdoctor.facts.environment import parse_env_text

if TYPE_CHECKING:
    from epdoctor.facts import Node

SONAMES = {
    "nccl": "libnccl.so.2",
    "nvshmem": "libnvshmem_host.so.3",
    "ucp": "libucp.so.0",
    "cuda": "libcuda.so.1",
    "ibverbs": "libibverbs.so.1",
    "mlx5": "libmlx5.so.1",
    "gdrapi": "libgdrapi.so.2",
}
_ORDER = {
    "nccl": ("mapped", "LD_PRELOAD", "pip", "LD_LIBRARY_PATH", "ldconfig", "VLLM_NCCL_SO_PATH"),
    "": ("mapped", "LD_PRELOAD", "LD_LIBRARY_PATH", "pip", "ldconfig", "VLLM_NCCL_SO_PATH"),
}


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    given = parse_env_text(options.env_file_text)
    launch = {
        name: given[name] for name in ("LD_LIBRARY_PATH", "LD_PRELOAD", "VLLM_NCCL_SO_PATH") if name in given
    }
    return (
        Script(
            name="libraries.loader",
            script="libraries.py",
            modules=("software.py",),
            params={"sonames": tuple(SONAMES.values()), "launch": launch},
        ),
    )


@dataclass(frozen=True)
class LibraryCopy:
    path: str
    """Links resolved."""
    version: str
    """"2.30.7"; empty: neither the file's name, nor a header, nor a wheel tells."""
    origin: str
    """mapped | LD_PRELOAD | LD_LIBRARY_PATH | pip | ldconfig | VLLM_NCCL_SO_PATH"""
    order: int
    """0 is what a vLLM worker takes."""
    detail: str = ""
    """Which process or wheel: "VLLM::EngineCore_DP0 (pid 4711)", "nvidia-nccl-cu13"."""

    def __str__(self) -> str:
        return f"{self.version or 'unknown version'} in {self.path} ({self.detail or self.origin})"


@dataclass(frozen=True)
class Libraries:
    by_name: Mapping[str, tuple[LibraryCopy, ...]]
    unseen: Mapping[str, str]
    """Places that could not be looked at -> why."""
    glibc: str = ""
    """Version of the C library, "2.39"; empty: not told, or a recording from before it was asked."""
    libstdcxx: str = ""
    """Of the libstdc++.so.6 that the loader takes first, "6.0.33"; empty likewise."""

    def copies(self, name: str) -> tuple[LibraryCopy, ...]:
        """Copies of "nccl", "nvshmem", "ucp", "cuda", "ibverbs", "mlx5", "gdrapi"; what loads is first."""
        return self.by_name.get(name, ())

    def loaded(self, name: str) -> LibraryCopy:
        """The copy that a vLLM worker takes. Raises Unmeasured where none was found."""
        found = self.copies(name)
        if not found:
            reasons = "; ".join(f"{place}: {why}" for place, why in self.unseen.items())
            raise Unmeasured(f"no {SONAMES.get(name, name)} found" + (f" ({reasons})" if reasons else ""))
        return found[0]

    def version_of(self, name: str) -> str:
        """Version of the copy that a vLLM worker takes. Raises Unmeasured where it is not told."""
        copy = self.loaded(name)
        if not copy.version:
            raise Unmeasured(f"version of {copy.path}: neither its name nor a header nor a wheel tells")
        return copy.version

    def source_of(self, name: str) -> str:
        """Where that version comes from, for a finding's text."""
        copy = self.loaded(name)
        return f"{copy.path}, {copy.detail or copy.origin}"


def version_in_name(path: str, fewest: int = 3) -> str:
    """ "2.30.7" of libnccl.so.2.30.7; empty where the name ends in fewer than `fewest` numbers."""
    numbers = path.rpartition("/")[2].partition(".so.")[2]
    parts = numbers.split(".")
    plain = len(parts) >= fewest and all(part.isascii() and part.isdigit() for part in parts)
    return numbers if plain else ""


def version_in_macros(macros: Mapping[str, str]) -> str:
    """Version that a header's macros tell: nccl.h, nvshmem_version.h, ucp_version.h, gdrapi.h."""
    for names in (
        ("NCCL_MAJOR", "NCCL_MINOR", "NCCL_PATCH"),
        ("NVSHMEM_VENDOR_MAJOR_VERSION", "NVSHMEM_VENDOR_MINOR_VERSION", "NVSHMEM_VENDOR_PATCH_VERSION"),
        ("UCP_API_MAJOR", "UCP_API_MINOR"),
        ("GDR_API_MAJOR_VERSION", "GDR_API_MINOR_VERSION"),
    ):
        parts = [macros.get(name, "").strip("()") for name in names]
        if all(part.isascii() and part.isdigit() for part in parts):
            return ".".join(str(int(part)) for part in parts)
    return ""


def _version(name: str, path: str, macros: Mapping[str, str]) -> str:
    # UCX puts its ABI, not its release, into the file's name (libucp.so.0.0.0).
    # GDRCopy names its library by two numbers: libgdrapi.so.2.5 (NVIDIA/gdrcopy src/Makefile, LIB_VER).
    named = "" if name == "ucp" else version_in_name(path, 2 if name == "gdrapi" else 3)
    return named or version_in_macros(macros)


def _stem(name: str) -> str:
    return SONAMES[name].partition(".so")[0]


def _name_of(path: str) -> str:
    file = path.rpartition("/")[2]
    for name in SONAMES:
        rest = file.removeprefix(_stem(name))
        # auditwheel renames what it bundles: libucp-1c5b8a2e.so.0.0.0
        if rest != file and (rest.startswith(".so") or (rest.startswith("-") and ".so" in rest)):
            return name
    return ""


def _from_workers(source: Source) -> list[tuple[str, LibraryCopy]]:
    found: list[tuple[str, LibraryCopy]] = []
    for process in processes.parse(source).workers:
        if isinstance(process.libraries, Unmeasured):
            continue
        for library in process.libraries:
            name = _name_of(library.path)
            if name:
                version = _version(name, library.path, library.macros)
                found.append(
                    (name, LibraryCopy(library.path, version, "mapped", 0, f"mapped by {process.name}"))
                )
    return found


def _from_pip(source: Source) -> list[tuple[str, LibraryCopy]]:
    environment = python_env.parse(source)
    found: list[tuple[str, LibraryCopy]] = []
    for library in environment.libraries:
        name = _name_of(library.path)
        if not name:
            continue
        wheel = (
            environment.first(f"nvidia-{name}-cu13", f"nvidia-{name}-cu12")
            if "/nvidia/" in library.path
            else None
        )
        version = (
            version_in_macros(library.macros)
            or (wheel[1] if wheel else "")
            or _version(name, library.path, {})
        )
        found.append((name, LibraryCopy(library.path, version, "pip", 0, wheel[0] if wheel else "")))
    return found


def _from_loader(source: Source) -> list[tuple[str, LibraryCopy]]:
    found: list[tuple[str, LibraryCopy]] = []
    rows = source.rows("libraries.loader")
    if not any(row[0] == "cache" for row in rows):
        raise Unmeasured("libraries.loader: the search did not finish")
    for row in rows:
        if row[0] != "copy" or len(row) < 2 or not isinstance(row[1], list) or len(row[1]) != 5:
            continue
        origin, soname, _, real, macros = row[1]
        name = next((key for key, value in SONAMES.items() if value == soname), "")
        if name and isinstance(real, str):
            texts = {str(k): str(v) for k, v in macros.items()} if isinstance(macros, dict) else {}
            found.append((name, LibraryCopy(real, _version(name, real, texts), str(origin), 0)))
    return found


def _number(value: object) -> str:
    """The last word, where it is numbers and dots alone."""
    word = str(value).split()[-1][:20] if isinstance(value, str) and value.split() else ""
    return word if word and all(part.isascii() and part.isdigit() for part in word.split(".")) else ""


def _c_runtime(source: Source) -> tuple[str, str]:
    """(glibc, libstdc++), each empty where not told."""
    try:
        values = source.values("libraries.loader")
    except Unmeasured:
        return "", ""
    return _number(values.get("glibc")), version_in_name(str(values.get("libstdcxx", ""))[:300])


def parse(source: Source) -> Libraries:
    """Raises Unmeasured only where no place at all could be looked at."""
    found: list[tuple[str, LibraryCopy]] = []
    unseen: dict[str, str] = {}
    for place, look in (("workers", _from_workers), ("wheels", _from_pip), ("loader", _from_loader)):
        try:
            found.extend(look(source))
        except Unmeasured as reason:
            unseen[place] = str(reason)
    if "loader" in unseen and not found:
        raise Unmeasured(unseen["loader"])
    by_name: dict[str, tuple[LibraryCopy, ...]] = {}
    for name in SONAMES:
        order = _ORDER.get(name, _ORDER[""])
        copies = [copy for key, copy in found if key == name and copy.origin in order]
        copies.sort(key=lambda copy: order.index(copy.origin))
        unique: dict[str, LibraryCopy] = {}
        for copy in copies:
            known = unique.get(copy.path)
            if known is None:
                unique[copy.path] = copy
            elif not known.version and copy.version:
                unique[copy.path] = LibraryCopy(known.path, copy.version, known.origin, 0, known.detail)
        by_name[name] = tuple(
            LibraryCopy(copy.path, copy.version, copy.origin, number, copy.detail)
            for number, copy in enumerate(unique.values())
        )
    return Libraries(by_name, unseen, *_c_runtime(source))


def _digest(name: str) -> Callable[[Node], str | None]:
    def value(node: Node) -> str | None:
        libraries = node.libraries
        if not libraries.copies(name):
            return None
        return libraries.version_of(name)

    return value


def _ucx(node: Node) -> str | None:
    bundled = node.python_env.first("nixl-cu13", "nixl-cu12")
    # NIXL's wheel brings its own UCX; a system one is not what runs.
    return f"in {bundled[0]} {bundled[1]}" if bundled else _digest("ucp")(node)


def _c_runtime_text(node: Node) -> str | None:
    libraries = node.libraries
    texts = (f"glibc {libraries.glibc}" if libraries.glibc else "",
             f"libstdc++ {libraries.libstdcxx}" if libraries.libstdcxx else "")  # fmt: skip
    return ", ".join(filter(None, texts)) or None


DIGEST: dict[str, Callable[[Node], Any]] = {
    "lib.c-runtime": _c_runtime_text,
    "lib.nccl": _digest("nccl"),
    "lib.nvshmem": _digest("nvshmem"),
    "lib.ucx": _ucx,
}
