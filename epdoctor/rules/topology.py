"""Rules about how GPUs and NICs hang together."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.model import Problem, Severity
from epdoctor.rules import node_rule

NEAR = ("PIX", "PXB")


def _compute_nics(node: Node) -> tuple[str, ...] | None:
    """Names of the compute HCAs that are in the matrix; None: take all NICs."""
    try:
        names = node.compute_hcas.names
    except Unmeasured:
        return None
    return tuple(names) or None


@node_rule
def gpu_nic_affinity(node: Node) -> Iterator[Problem]:
    """Each GPU's nearest compute NIC hangs on the same PCIe switch (PIX or PXB)."""
    matrix, among = node.topology, _compute_nics(node)
    far = [(gpu, *matrix.best_nics(gpu, among)) for gpu in matrix.gpus]
    far = [(gpu, relation, nics) for gpu, relation, nics in far if relation not in NEAR]
    if not far:
        return
    # A hypervisor may show every device on one virtual bus, whatever lies below it.
    if require(node.system.virtualization) != "none":
        raise Unmeasured("a virtual machine hides the host's PCIe topology")
    # On Grace, CPU and GPU share NVLink-C2C and NICs hang on the CPU: that is the design.
    severity = Severity.INFO if require(node.system.is_grace) else None
    for relation in sorted({relation for _, relation, _ in far}):
        rows = [(gpu, nics) for gpu, found, nics in far if found == relation]
        yield Problem(
            f"{relation} is the nearest NIC of {', '.join(gpu for gpu, _ in rows)}",
            "PIX or PXB (one PCIe switch)",
            evidence=tuple(f"{gpu}: {relation} to {', '.join(nics[:8])}" for gpu, nics in rows),
            severity=severity,
        )


def _alike(node: Node, nics: tuple[str, ...], nearest: tuple[str, ...]) -> tuple[str, ...]:
    """NICs of the matrix that are of the same model as a GPU's nearest: those that could carry a share.

    The compute HCAs alone would not do: where nobody names them, they are the nearest ones themselves."""
    models = {name: device.model for name in nics if (device := node.rdma.device(name)) is not None}
    wanted = {models[name] for name in nearest if name in models}
    return tuple(name for name in nics if name in nearest or models.get(name) in wanted)


@node_rule
def gpus_share_nics_evenly(node: Node) -> Iterator[Problem]:
    """No NIC is the nearest of more GPUs than its share."""
    matrix, among = node.topology, _compute_nics(node)
    load: dict[str, Fraction] = {}
    served: dict[str, list[str]] = {}
    for gpu in matrix.gpus:
        relation, nics = matrix.best_nics(gpu, among)
        if relation not in NEAR:
            raise Unmeasured(f"{gpu} has no NIC on its PCIe switch; see topology.gpu-nic-affinity")
        for nic in nics:
            load[nic] = load.get(nic, Fraction(0)) + Fraction(1, len(nics))
            served.setdefault(nic, []).append(gpu)
    nics_in_matrix = _alike(node, matrix.nics, tuple(load))
    share = -(-len(matrix.gpus) // len(nics_in_matrix))
    for nic, amount in sorted(load.items()):
        if amount > share:
            idle = [name for name in nics_in_matrix if name not in load]
            unused = f"; nearest of no GPU: {', '.join(idle[:8])}" if idle else ""
            yield Problem(
                f"nearest NIC of {len(served[nic])} GPUs ({', '.join(served[nic])}){unused}",
                f"at most {share} for {len(matrix.gpus)} GPUs and {len(nics_in_matrix)} NICs",
                subject=nic,
            )
