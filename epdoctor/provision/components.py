"""What `epdoctor provision` can put in order: one role, one playbook and one tag each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epdoctor.catalog import did_you_mean
from epdoctor.exceptions import UsageError


@dataclass(frozen=True)
class Component:
    """A role of playbooks/roles."""

    name: str
    title: str
    backends: tuple[str, ...]
    """Back ends that need it; empty: all. Without a back end every component runs."""
    checks: tuple[str, ...]
    """Checks that show whether it is right; they run before and after."""


COMPONENTS = (
    Component(
        "limits",
        "locked memory and open files",
        (),
        ("host.memlock-unlimited", "host.memlock-services", "host.memlock-ray", "host.nofile-enough"),
    ),
    Component(
        "ibgda_driver",
        "driver options for IBGDA",
        # NVSHMEM's IBGDA (DeepEP d4f41e4 docs/nvshmem.md); UCX GDA asks for PeerMappingOverride too
        # (UCX 1.23 src/uct/ib/mlx5/gdaki/gdaki.c:281).
        ("deepep_high_throughput", "deepep_low_latency", "nixl_ep"),
        ("driver.ibgda-options", "driver.options-live"),
    ),
    Component(
        "gpudirect",
        "GPU memory for the NIC",
        (),
        (
            "gpudirect.memory-registrable",
            "gpudirect.gdaki-registrable",
            "gpudirect.peermem-at-boot",
        ),
    ),
    Component(
        "env",
        "environment of the workers",
        (),
        (
            "network.gloo-interface-resolves",
            "network.nccl-interface-resolves",
            "network.nvshmem-interface-resolves",
            "network.multi-homed-says-which",
            "network.nccl-hca-resolves",
            "network.vllm-host-ip-local",
            "network.nixl-side-channel-host-local",
            "nvshmem.qp-depth-fits-tokens",
        ),
    ),
)


def choose(backend: str, tags: Sequence[str], skip_tags: Sequence[str]) -> tuple[Component, ...]:
    """What to run: the named ones, else what the back end needs. Raises UsageError for an unknown tag."""
    names = [component.name for component in COMPONENTS]
    for tag in (*tags, *skip_tags):
        if tag not in names:
            raise UsageError(f"no component {tag!r}{did_you_mean(tag, names)}; there are {', '.join(names)}")
    chosen = tuple(
        component
        for component in COMPONENTS
        if component.name not in skip_tags
        and (
            component.name in tags
            if tags
            else not backend or not component.backends or backend in component.backends
        )
    )
    if not chosen:
        raise UsageError("--tags and --skip-tags leave no component")
    return chosen
