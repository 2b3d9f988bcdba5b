"""Rules on what one package was built for and another one is: torch, CUDA, DeepEP and the C library."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, python_env
from epdoctor.facts.base import require
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.versions import deepep_generation


def _torch(node: Node) -> str:
    """torch's version in the target interpreter."""
    if python_env.nothing_found(node.source):
        raise NotApplicable("no Python environment with vLLM, DeepEP or torch found")
    torch = node.python_env.version("torch")
    if torch is None:
        raise NotApplicable("torch is not installed")
    return torch


def _compat_libcuda(node: Node) -> int:
    """Major CUDA version of a cuda-compat that loads before the driver's own libcuda; 0: none."""
    copies = node.libraries.copies("cuda")
    if not copies or "/compat/" not in copies[0].path:
        return 0
    home = copies[0].path.partition("/compat/")[0].rpartition("cuda-")[2]
    return int(home.split(".")[0]) if home.split(".")[0].isdecimal() else 99


@node_rule
def torch_cuda_fits_driver(node: Node) -> Iterator[Problem]:
    """torch's CUDA is of a major version that the driver runs; minor versions are compatible, and cuda-compat in
    front of the driver's libcuda carries a newer one."""
    torch = _torch(node)
    environment = node.python_env
    major = environment.cuda_major
    if major is None:
        raise Unmeasured(f"torch's CUDA version in {environment.prefix}: not told by its version")
    driver = require(node.gpu.cuda_driver_version)
    if major <= driver[0] or major <= _compat_libcuda(node):
        return
    yield Problem(
        f"torch {torch} is built for CUDA {major}, the driver runs {driver[0]}.{driver[1]}",
        f"a driver for CUDA {major}, or torch for CUDA {driver[0]}",
        (f"{environment.prefix} ({environment.chosen_by})",),
    )


@node_rule
def torch_as_vllm_pins(node: Node) -> Iterator[Problem]:
    """The torch that the vLLM release was built against. Another patch release is told, not blamed."""
    torch = _torch(node)
    environment = node.python_env
    vllm = environment.packages["vllm"]
    wanted = compat.release(vllm, "vLLM's version")
    pins = compat.vllm_pins(vllm)
    pin = str(pins.get("torch", "")) if pins and compat.release(str(pins["version"])) == wanted else ""
    if not pin:
        raise NotApplicable(f"the torch that vLLM {vllm} was built against is not known")
    found, built = compat.release(torch, "torch's version"), compat.release(pin)
    if found != built:
        yield Problem(
            f"torch {torch} with vLLM {vllm} in {environment.prefix}",
            f"torch {pin}, which the wheel was built against, or a vLLM of your own build",
            severity=Severity.INFO if found.release[:2] == built.release[:2] else None,
            now=(f"{environment.python} -m pip install vllm=={wanted}   # brings torch {pin} back",),
        )


@node_rule
def torch_new_enough_for_deepep(node: Node) -> Iterator[Problem]:
    """The oldest torch that this generation of DeepEP works with."""
    torch = _torch(node)
    generation = deepep_generation(node)
    if generation is None or not generation.torch_min:
        raise NotApplicable("this DeepEP names no minimum for torch")
    if compat.release(torch, "torch's version") < compat.release(generation.torch_min):
        yield Problem(
            f"torch {torch} with DeepEP {generation.title}",
            f"torch {generation.torch_min} or newer",
            now=(f"{node.python_env.python} -m pip list | grep -i -e torch -e deep",),
        )


@node_rule
def deepep_as_vllm_pins(node: Node) -> Iterator[Problem]:
    """The DeepEP revision that this vLLM release was tried with. A fork or a newer one may be on purpose."""
    environment = node.python_env
    module = environment.deepep
    if module is None or module.empty:
        raise NotApplicable("DeepEP is not installed")
    vllm = environment.packages["vllm"]
    pins = compat.vllm_pins(vllm)
    revision, number = str(pins.get("deepep_revision", "")), str(pins.get("deepep_version", ""))
    if not revision or compat.release(str(pins["version"])) != compat.release(vllm, "vLLM's version"):
        raise NotApplicable(f"the DeepEP that vLLM {vllm} pins is not known")
    owned = environment.deepep_owners[0][1] if len(environment.deepep_owners) == 1 else ""
    told = owned or module.version
    if not told:
        raise Unmeasured(f"{module.described}: no version told")
    base, _, local = told.partition("+")
    if local and all(letter in "0123456789abcdef" for letter in local) and len(local) >= 6:
        same = revision.startswith(local) or local.startswith(revision)
    else:
        same = compat.release(base, "DeepEP's version") == compat.release(number)
    if not same:
        yield Problem(
            f"deep_ep {told} with vLLM {vllm}",
            f"{number} at {revision[:8]}, as vLLM {vllm} builds it, or another one on purpose",
            (module.path,),
        )


@node_rule
def c_runtime_fits_wheels(node: Node, *, library: str) -> Iterator[Problem]:
    """The node's C library, or C++ library, is one that the installed wheels load on."""
    libraries = node.libraries
    found = libraries.glibc if library == "glibc" else libraries.libstdcxx
    packages = node.python_env.packages
    floors: dict[str, list[str]] = {}
    for row in compat.field("wheels", "floors", list):
        name = str(row["distribution"])
        if name in packages and compat.release(packages[name], name) >= compat.release(str(row["since"])):
            floors.setdefault(str(row[library]), []).append(f"{name} {packages[name]}")
    if not floors:
        raise NotApplicable("what the wheels here need is not known")
    if not found:
        if not any(row[0] == "glibc" for row in node.source.rows("libraries.loader")):
            raise NotApplicable("not in this recording, which is older than this check")
        raise Unmeasured(f"version of {library}: no file's name tells it")
    for floor, names in floors.items():
        if compat.release(found) < compat.release(floor):
            yield Problem(
                f"{'glibc' if library == 'glibc' else 'libstdc++'} {found} with {', '.join(names)}",
                f"{floor} or newer",
            )
