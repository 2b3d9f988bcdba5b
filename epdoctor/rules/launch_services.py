"""Rules on Services beside the pods: names that inject variables, addresses that resolve in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.layout import across_nodes, fleets, text_of
from epdoctor.launch.model import LaunchSet, Resource
from epdoctor.model import Problem
from epdoctor.rules import launch_rule


def _services(launch: LaunchSet) -> list[Resource]:
    return [item for item in launch.resources if item.kind == "Service"]


@launch_rule
def launch_service_name_harmless(launch: LaunchSet) -> Iterator[Problem]:
    """A Service called vllm injects VLLM_PORT=tcp://... into every pod of its namespace."""
    unseen = ""
    for service in _services(launch):
        if any(mark in service.name for mark in ("{{", "<<", "$")):
            unseen = f"{service.location}: the name of a Service is {service.name[:60]} (not resolved)"
        if service.name.lower() != "vllm":
            continue
        off = [
            server
            for server in launch.servers
            if server.pod is not None and server.pod.raw.get("enableServiceLinks") is False
        ]
        if off and len(off) == sum(1 for server in launch.servers if server.pod is not None):
            continue
        yield Problem(
            found="a Service is called vllm: its pods get VLLM_PORT=tcp://..., and vLLM stops at it",
            expected="another name, or enableServiceLinks: false in the pods",
            location=service.location,
        )
    if unseen:
        raise Unmeasured(unseen)


@launch_rule
def launch_headless_service(launch: LaunchSet) -> Iterator[Problem]:
    """Ranks that meet by the name of a headless Service need addresses before they are ready."""
    headless = [item for item in _services(launch) if _spec(item).get("clusterIP") == "None"]
    unseen: dict[str, None] = {}
    for servers in fleets(launch):
        server = servers[0]
        if server.kind != "kubernetes":
            continue
        try:
            if not across_nodes(servers):
                continue
            address = server.option("data-parallel-address") or server.option("master-addr")
            if address is None:
                continue
            text = address.value.text if address.value.runtime else text_of(server, address.name)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        for service in headless:
            parts = text.split(".")
            if service.name in parts[:2] and _spec(service).get("publishNotReadyAddresses") is not True:
                yield Problem(
                    found=f"Service {service.name} is headless without publishNotReadyAddresses; {text[:80]} resolves "
                    "only once the head is ready, which waits for the others",
                    expected="publishNotReadyAddresses: true",
                    location=service.location,
                )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _spec(service: Resource) -> Mapping[str, Any]:
    spec = service.raw.get("spec")
    return spec if isinstance(spec, Mapping) else {}
