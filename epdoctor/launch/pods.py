"""What a pod's spec grants a container: devices, shared memory, capabilities, probes."""

from __future__ import annotations

import re

from epdoctor.launch.model import Pod
from epdoctor.launch.yaml_tree import Mapping, Node, Scalar, Sequence
from epdoctor.model import Location

_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "Ki": 1 << 10,
          "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "m": 0.001}  # fmt: skip
_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/xe", "gpu.intel.com/i915")


def quantity_bytes(text: str) -> int | None:
    """Kubernetes' quantities: 2Gi, 512M, 1e9."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([kKMGTP]i?|m)?", text.strip())
    if match is None or (match[2] or "") not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2] or ""]) if "." in match[1] else int(
        int(match[1]) * _UNITS[match[2] or ""]
    )  # fmt: skip


def _get(node: Node | None, *names: str) -> Node | None:
    for name in names:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _texts(node: Node | None) -> dict[str, str]:
    if not isinstance(node, Mapping):
        return {}
    return {key.text: value.text for key, value in node.items() if isinstance(value, Scalar)}


def _true(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value is True


def _gpu_node(container: Mapping) -> Node | None:
    """Where the number of GPUs stands."""
    for key in ("limits", "requests"):
        for name in _GPUS:
            found = _get(container, "resources", key, name)
            if found is not None:
                return found
    return container.get("resources")


def _shm(spec: Mapping, container: Mapping) -> tuple[bool, int | None, Location | None]:
    """(mounted, bytes, place): 0 bytes: a mount without a limit of its own."""
    mounts, volumes = container.get("volumeMounts"), spec.get("volumes")
    if not isinstance(mounts, Sequence):
        return False, None, None
    for mount in mounts.items:
        path = _get(mount, "mountPath")
        if not isinstance(path, Scalar) or path.text.rstrip("/") != "/dev/shm":  # noqa: S108 - a mount in a pod
            continue
        name = _get(mount, "name")
        for volume in volumes.items if isinstance(volumes, Sequence) else ():
            named = _get(volume, "name")
            if isinstance(named, Scalar) and isinstance(name, Scalar) and named.text == name.text:
                size = _get(volume, "emptyDir", "sizeLimit")
                if isinstance(size, Scalar):
                    return True, quantity_bytes(size.text), size.location
                return True, 0, path.location
        return True, 0, path.location
    return False, None, mounts.location


def pod_of(
    kind: str, name: str, spec: Mapping, container: Mapping, *, replicas: int | None, size: int | None
) -> Pod:
    """The container's surroundings as the manifest gives them."""
    limits, requests = (_texts(_get(container, "resources", key)) for key in ("limits", "requests"))
    gpus = next(
        (limits.get(key) or requests.get(key) for key in _GPUS if key in limits or key in requests), ""
    )
    security = container.get("securityContext")
    added = _get(security, "capabilities", "add")
    mounted, shm, shm_place = _shm(spec, container)
    places = {
        name: node.location
        for name, node in (
            ("gpus", _gpu_node(container)),
            ("security", added or security),
            *((short, container.get(f"{short}Probe")) for short in ("startup", "liveness", "readiness")),
        )
        if node is not None
    }
    if shm_place is not None:
        places["shm"] = shm_place
    probes = {
        short: node.plain()
        for short in ("startup", "liveness", "readiness")
        if isinstance(node := container.get(f"{short}Probe"), Mapping)
    }
    raw = spec.plain()
    image, own = container.get("image"), container.get("name")
    return Pod(
        kind=kind,
        name=name,
        container=own.text if isinstance(own, Scalar) else "",
        location=own.location if isinstance(own, Scalar) else container.location,
        requests=requests,
        limits=limits,
        gpus=int(gpus) if gpus and gpus.isascii() and gpus.isdigit() and len(gpus) < 4 else None,
        capabilities=tuple(item.text.upper() for item in added.items if isinstance(item, Scalar))
        if isinstance(added, Sequence)
        else (),
        privileged=_true(_get(security, "privileged")),
        host_network=_true(spec.get("hostNetwork")),
        host_ipc=_true(spec.get("hostIPC")),
        shm_bytes=shm,
        shm_mounted=mounted,
        probes=probes,
        replicas=replicas,
        group_size=size,
        places=places,
        image=image.text if isinstance(image, Scalar) else "",
        partial=kind not in ("", "?") and image is None,
        raw=raw if isinstance(raw, dict) else {},
    )
