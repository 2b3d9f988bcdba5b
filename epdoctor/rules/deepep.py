"""Rules on the installed DeepEP (module `deep_ep`) against vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, python_env
from epdoctor.facts.python_env import PythonEnv
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, need, node_rule
from epdoctor.rules.environment import unset_command


@need("deepep")
def has_deepep(node: Node) -> bool:
    """DeepEP (module deep_ep) is not installed"""
    return not python_env.nothing_found(node.source) and node.python_env.deepep is not None


def _vllm_version(node: Node) -> str:
    """Of the installed vLLM, else --vllm, else the newest known."""
    return (
        node.python_env.packages.get("vllm")
        or node.goal.vllm_version
        or str(compat.table("backends")["newest_vllm"])
    )


def install_commands(node: Node, environment: PythonEnv) -> tuple[str, ...]:
    """The script of that vLLM release, which knows its DeepEP revision. Its workspace has to stay: the built
    library's rpath points there (DeepEP d4f41e4e setup.py:117)."""
    release = compat.release(_vllm_version(node), "vLLM's version")
    folder = f"/opt/vllm-src-{release}"
    return (
        (
            f"test -d {folder} || git clone --depth 1 --branch v{release} "
            f"https://github.com/vllm-project/vllm {folder}"
        ),
        f"cd {folder}/tools/ep_kernels && VIRTUAL_ENV={environment.prefix} bash install_python_libraries.sh",
    )


@node_rule
def deepep_installed(node: Node) -> Iterator[Problem]:
    """vLLM asks for `import deep_ep` and dies without it."""
    environment = node.python_env
    if environment.deepep is None:
        elsewhere = ", ".join(environment.deepep_elsewhere[:3])
        yield Problem(
            found=f"no module deep_ep in {environment.prefix} ({environment.chosen_by})"
            + (f"; it is in {elsewhere}" if elsewhere else ""),
            expected=f"DeepEP as vLLM {_vllm_version(node)} pins it",
            now=install_commands(node, environment),
        )


@node_rule
def deepep_has_class(node: Node, *, class_name: str) -> Iterator[Problem]:
    """The class that vLLM's back end uses must be in the installed deep_ep."""
    environment = node.python_env
    module = environment.deepep
    if module is None:
        raise NotApplicable("DeepEP is not installed")
    if module.empty:
        raise NotApplicable("deep_ep is empty: see deepep.not-a-name-squat")
    if class_name in module.classes:
        return
    number = _vllm_version(node)
    through = str(compat.table("vllm")["deepep_2_5_unsupported_through"])
    if (
        module.generation == "2.5"
        and compat.release(number).release[:2] > compat.release(through).release[:2]
    ):
        raise Unmeasured(f"whether vLLM {number} works with DeepEP 2.5 is not known; {through} does not")
    yield Problem(
        found=module.described,
        expected=f"deep_ep with {class_name}, as vLLM {number} uses it",
        now=install_commands(node, environment),
    )


@node_rule
def deepep_one_owner(node: Node) -> Iterator[Problem]:
    """Two distributions that install the same module overwrite each other's files."""
    environment = node.python_env
    owners = sorted(set(environment.deepep_owners))
    if len(owners) > 1:
        texts = [f"{name} {number}" for name, number in owners]
        extra = [name for name, _ in owners if name != "deep-ep"]
        yield Problem(
            found=f"module deep_ep belongs to {' and '.join(texts)} in {environment.prefix}",
            expected="one distribution that installs deep_ep",
            now=(f"{environment.python} -m pip uninstall -y {' '.join(name for name, _ in owners)}",
                 *install_commands(node, environment)),
            subject=", ".join(extra),
        )  # fmt: skip


@node_rule
def not_a_name_squat(node: Node) -> Iterator[Problem]:
    """deep-ep 1.0.0 and deep-gemm 1.0.0 on the package index are empty packages of somebody else."""
    environment = node.python_env
    for row in compat.field("deepep", "name_squats", list):
        name, number = str(row["distribution"]), str(row["version"])
        if environment.packages.get(name) == number:
            yield Problem(
                found=f"{name} {number} in {environment.prefix}: an empty package of that name",
                expected=str(row["instead"]),
                now=(f"{environment.python} -m pip uninstall -y {name}",),
                subject=name,
            )


@node_rule
def deepep_root_variables_clean(node: Node) -> Iterator[Problem]:
    """DeepEP 2.x takes EP_NCCL_ROOT_DIR, then NCCL_DIR, before the wheel; it must equal the loaded one."""
    environment = node.environment
    prefix = node.python_env.prefix
    for name in ("EP_NCCL_ROOT_DIR", "NCCL_DIR", "EP_NVSHMEM_ROOT_DIR"):
        given = environment.get(name)
        if given is not None and given.value and not given.value.startswith(prefix + "/"):
            yield Problem(
                found=f"{name}={given.value} in {given.source}",
                expected=f"{name} not set, or the copy that vLLM loads (under {prefix})",
                now=(unset_command(name, given),),
                subject=name,
            )
