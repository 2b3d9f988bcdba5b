"""Rules on the versions of NCCL, NVSHMEM, NIXL, torch and CUDA's driver library."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, python_env
from epdoctor.facts.libraries import LibraryCopy
from epdoctor.facts.python_env import PythonEnv
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, need, node_rule


@need("vllm-env")
def has_vllm_env(node: Node) -> bool:
    """No Python environment with vLLM found here (name it with --python)"""
    return not python_env.nothing_found(node.source) and "vllm" in node.python_env.packages


@need("nixl")
def has_nixl(node: Node) -> bool:
    """NIXL is not installed"""
    if python_env.nothing_found(node.source):
        return False
    return node.python_env.first("nixl-cu13", "nixl-cu12", "nixl") is not None


def cuda_suffix(environment: PythonEnv) -> str:
    """cu13 or cu12, for names of wheels; cu13, vLLM's default, where torch does not tell."""
    return f"cu{environment.cuda_major or 13}"


def nixl_version(environment: PythonEnv) -> tuple[str, str]:
    """(distribution, version) of the NIXL wheel that torch's CUDA makes Python import."""
    names = [f"nixl-{cuda_suffix(environment)}", "nixl-cu13", "nixl-cu12", "nixl"]
    found = environment.first(*names)
    if found is None:
        raise Unmeasured(f"NIXL is not in {environment.prefix}")
    return found


def deepep_generation(node: Node) -> compat.Generation | None:
    """Generation of the installed DeepEP; None: none installed, or its classes fit no known one."""
    if python_env.nothing_found(node.source):
        return None
    module = node.python_env.deepep
    return compat.generations().get(module.generation) if module is not None else None


@node_rule
def nvshmem_version_fits_deepep(node: Node) -> Iterator[Problem]:
    """Legacy DeepEP needs NVSHMEM from 3.3.9 up to, not including, 3.5.19 (RC QP order changed)."""
    generation = deepep_generation(node) or compat.generations()["2.0"]
    if not generation.nvshmem_min:
        raise NotApplicable(f"DeepEP {generation.title} does not use NVSHMEM")
    copy = node.libraries.loaded("nvshmem")
    number = node.libraries.version_of("nvshmem")
    found = compat.release(number, "NVSHMEM's version")
    low, high = generation.nvshmem_min, generation.nvshmem_below
    if compat.release(low) <= found < compat.release(high):
        return
    python = python_of(node)
    yield Problem(
        found=f"NVSHMEM {number} ({node.libraries.source_of('nvshmem')})",
        expected=f"NVSHMEM {low} or newer, older than {high} (DeepEP {generation.title})",
        evidence=tuple(str(other) for other in node.libraries.copies("nvshmem")),
        now=_nvshmem_commands(copy, python),
    )


def python_of(node: Node) -> str:
    """The target interpreter for a command, or python3 where none is known."""
    try:
        return node.python_env.python
    except Unmeasured:
        return "python3"


def without_folder(copy: LibraryCopy) -> str:
    """The command that takes a library's folder out of LD_LIBRARY_PATH."""
    folder = copy.path.rpartition("/")[0]
    kept = f"echo \"$LD_LIBRARY_PATH\" | tr : '\\n' | grep -vxF '{folder}' | paste -sd:"
    return f"export LD_LIBRARY_PATH=$({kept})"


def _nvshmem_commands(copy: LibraryCopy, python: str) -> tuple[str, ...]:
    if copy.origin == "LD_LIBRARY_PATH":
        return (without_folder(copy),)
    if copy.origin == "LD_PRELOAD":
        return ("unset LD_PRELOAD",)
    if copy.origin == "ldconfig":
        return ("sudo apt-get remove 'libnvshmem3-cuda-*'",)
    wheel = copy.detail if copy.detail.startswith("nvidia-nvshmem") else "nvidia-nvshmem-cu13"
    return (f"{python} -m pip install --no-deps {wheel}==3.4.5",)


@node_rule
def one_copy_of_nvshmem(node: Node) -> Iterator[Problem]:
    """Any further NVSHMEM of another version on the loader's path may be what a worker takes."""
    copies = [copy for copy in node.libraries.copies("nvshmem") if copy.version]
    if not copies:
        node.libraries.version_of("nvshmem")  # raises the reason
    versions = {copy.version for copy in copies}
    if len(versions) > 1:
        first, *others = copies
        different = [copy for copy in others if copy.version != first.version]
        # Mixed versions hurt only where one has the new RC queue pair order and another has not.
        border = compat.release(compat.generations()["2.0"].nvshmem_below)
        sides = {compat.release(number, "NVSHMEM's version") >= border for number in versions}
        yield Problem(
            found=f"NVSHMEM {first}; also {'; '.join(str(copy) for copy in different)}",
            expected="one version of libnvshmem_host.so.3 on the loader's path",
            severity=Severity.INFO if len(sides) == 1 else None,
            evidence=tuple(str(copy) for copy in copies),
            now=_nvshmem_commands(next((c for c in copies if c.origin != "pip"), first), python_of(node)),
        )


@node_rule
def nvshmem_without_ah_bug(node: Node) -> Iterator[Problem]:
    """NVSHMEM 3.3.20 to 3.4.5 leave ibv_ah_attr uninitialized, which some RoCE kernels refuse."""
    bug = compat.field("nvshmem", "ah_bug", dict)
    number = node.libraries.version_of("nvshmem")
    if (
        compat.release(str(bug["first"]))
        <= compat.release(number, "NVSHMEM's version")
        <= compat.release(str(bug["last"]))
    ):
        yield Problem(
            found=f"NVSHMEM {number} on RoCE ({node.libraries.source_of('nvshmem')})",
            expected=f'keep it, unless the log says "{bug["text"]}"; then an NVSHMEM with that call patched',
        )


@node_rule
def nccl_version_fits_deepep_v2(node: Node) -> Iterator[Problem]:
    """DeepEP 2.0 needs NCCL 2.30.4, 2.5 needs 2.32.3."""
    generation = deepep_generation(node)
    floor = generation.nccl_min if generation is not None else ""
    if generation is not None and not floor:
        raise NotApplicable(f"DeepEP {generation.title} does not use NCCL")
    floor = floor or str(compat.table("nccl")["gin_min"])
    number = node.libraries.version_of("nccl")
    if compat.release(number, "NCCL's version") < compat.release(floor):
        wheel = f"nvidia-nccl-{cuda_suffix(node.python_env)}"
        yield Problem(
            found=f"NCCL {number} ({node.libraries.source_of('nccl')})",
            expected=f"NCCL {floor} or newer ({'DeepEP ' + generation.title if generation else 'deepep_v2'})",
            now=(f"{node.python_env.python} -m pip install --no-deps '{wheel}>={floor}'",),
        )


@node_rule
def one_copy_of_nccl(node: Node) -> Iterator[Problem]:
    """Two mapped copies, or one that a variable puts before the wheel's."""
    libraries = node.libraries
    copies = libraries.copies("nccl")
    if not copies:
        libraries.loaded("nccl")
    mapped = [copy for copy in copies if copy.origin == "mapped"]
    forced = [
        copy for copy in copies if copy.origin in ("LD_PRELOAD", "LD_LIBRARY_PATH", "VLLM_NCCL_SO_PATH")
    ]
    wheel = [copy for copy in copies if copy.origin == "pip"]
    if len(mapped) > 1:
        yield Problem(
            found="; ".join(str(copy) for copy in mapped),
            expected="one libnccl.so.2 in vLLM's processes",
            evidence=tuple(str(copy) for copy in copies),
        )
    elif wheel:
        for copy in forced:
            if not copy.version:
                raise Unmeasured(f"version of {copy.path} ({copy.origin}): not told")
            if copy.version != wheel[0].version:
                yield Problem(
                    found=f"NCCL {copy} beside the wheel's {wheel[0].version or 'copy'}",
                    expected=f"{copy.origin} without another NCCL: torch was built for the wheel's",
                    evidence=tuple(str(other) for other in copies),
                    now=(
                        without_folder(copy) if copy.origin == "LD_LIBRARY_PATH" else f"unset {copy.origin}",
                    ),
                    subject=copy.origin,
                )


@node_rule
def torch_nccl_pin(node: Node) -> Iterator[Problem]:
    """The NCCL wheel that torch's metadata pins."""
    environment = node.python_env
    torch = environment.version("torch")
    if torch is None:
        raise NotApplicable("torch is not installed")
    pin = str(compat.torch_pins(torch).get("nccl", ""))
    if not pin:
        raise NotApplicable(f"the pins of torch {torch} are not known")
    wheel = environment.first("nvidia-nccl-cu13", "nvidia-nccl-cu12")
    if wheel is None:
        raise Unmeasured(f"no nvidia-nccl wheel in {environment.prefix}")
    if compat.release(wheel[1], "NCCL's version") != compat.release(pin):
        yield Problem(
            found=f"{wheel[0]} {wheel[1]} with torch {torch} in {environment.prefix}",
            expected=f"{wheel[0]} {pin}, as torch pins it, or a newer one on purpose",
            now=(f"{environment.python} -m pip install --no-deps {wheel[0]}=={pin}",),
        )


@node_rule
def libcuda_not_compat(node: Node) -> Iterator[Problem]:
    """cuda-compat's libcuda is for drivers older than itself; before a newer driver's own it fails."""
    copies = node.libraries.copies("cuda")
    if not copies:
        if "loader" in node.libraries.unseen:
            raise Unmeasured(node.libraries.unseen["loader"])
        raise NotApplicable("No libcuda on the loader's path")
    first = copies[0]
    if "/compat/" not in first.path:
        return
    own = next((copy for copy in copies if "/compat/" not in copy.path and copy.version), None)
    if own is None or not first.version:
        raise Unmeasured(f"{first.path} loads first, and the driver's own libcuda was not found beside it")
    if compat.version(first.version) <= compat.version(own.version):
        yield Problem(
            found=f"libcuda {first} before the driver's {own.version}",
            expected=f"the driver's own libcuda ({own.path})",
            evidence=tuple(str(copy) for copy in copies),
            now=(without_folder(first),) if first.origin == "LD_LIBRARY_PATH" else (),
        )


@node_rule
def nixl_installed(node: Node) -> Iterator[Problem]:
    """NIXL is in vLLM's environment."""
    environment = node.python_env
    if environment.first("nixl-cu13", "nixl-cu12", "nixl") is None:
        floor = compat.nixl_minimum(environment.packages["vllm"]) if "vllm" in environment.packages else ""
        yield Problem(
            found=f"no nixl in {environment.prefix}",
            expected=f"nixl {floor} or newer" if floor else "nixl",
            now=(f"{environment.python} -m pip install {f'nixl=={floor}' if floor else 'nixl'}",),
        )


@node_rule
def nixl_version_recent(node: Node) -> Iterator[Problem]:
    """vLLM refuses a NIXL older than its minimum."""
    environment = node.python_env
    floor = compat.nixl_minimum(environment.packages.get("vllm", ""))
    if not floor:
        raise NotApplicable(f"vLLM {environment.packages.get('vllm')} states no minimum for NIXL")
    name, number = nixl_version(environment)
    if compat.release(number, "NIXL's version") < compat.release(floor):
        yield Problem(
            found=f"{name} {number} in {environment.prefix}",
            expected=f"NIXL {floor} or newer for vLLM {environment.packages.get('vllm')}",
            now=(f"{environment.python} -m pip install 'nixl=={floor}'",),
        )


@node_rule
def nixl_variant_fits_torch(node: Node) -> Iterator[Problem]:
    """nixl picks nixl-cu12 or nixl-cu13 by torch's CUDA; the right one has to be there."""
    environment = node.python_env
    major = environment.cuda_major
    if major is None:
        raise Unmeasured(f"torch's CUDA version in {environment.prefix}: not told by its version")
    if f"nixl-cu{major}" in environment.packages:
        return
    others = [name for name in ("nixl-cu12", "nixl-cu13") if name in environment.packages]
    yield Problem(
        found=f"{', '.join(others) or 'neither nixl-cu12 nor nixl-cu13'} "
        f"with torch {environment.version('torch')}",
        expected=f"nixl-cu{major}",
        now=(f"{environment.python} -m pip install nixl-cu{major}",),
    )


@node_rule
def nixl_ep_built_for_torch(node: Node) -> Iterator[Problem]:
    """NIXL's wheel has nixl_ep for a few torch releases; with another one vLLM sees no nixl_ep."""
    environment = node.python_env
    torch = environment.version("torch")
    if torch is None:
        raise NotApplicable("torch is not installed")
    name, number = nixl_version(environment)
    builds = compat.nixl_ep_torch(number)
    if not builds:
        raise NotApplicable(f"the torch releases that {name} {number} has nixl_ep for are not known")
    wanted = compat.release(torch, "torch's version")
    if f"{wanted.major}.{wanted.minor}" not in builds:
        yield Problem(
            found=f"torch {torch} with {name} {number}, whose nixl_ep is for torch {', '.join(builds)}",
            expected=f"torch {builds[-1]}, or a NIXL with nixl_ep for torch {wanted.major}.{wanted.minor}",
        )


@node_rule
def distribution_installed(node: Node, *, distribution: str) -> Iterator[Problem]:
    """A package that the back end imports is in vLLM's environment."""
    environment = node.python_env
    if environment.first(distribution) is None:
        yield Problem(
            found=f"no {distribution} in {environment.prefix} ({environment.chosen_by})",
            expected=f"{distribution} in the interpreter that serves",
        )
