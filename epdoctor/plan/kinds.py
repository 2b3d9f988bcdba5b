"""The files that start a plan: shell scripts, an sbatch script, LeaderWorkerSets, compose files. Pure text.

Every word from a node or a user is quoted for the shell, or written by yaml.safe_dump."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

from epdoctor.exceptions import UsageError
from epdoctor.plan.choose import BY_WORKLOAD, Group, Request
from epdoctor.plan.commands import API_PORT, ROLES, RPC_PORT, Server, command_lines, options, words

SHM = "16Gi"
"""Room for vLLM's message queues between its processes; the 64 MiB of a container's default are not enough."""
_HEADER = "Written by `epdoctor plan`."


def _env_text(server: Server) -> str:
    lines = [f"# {_HEADER} Variables of {server.name}."]
    lines += [f"# {_comment(note)}" for note in server.notes]
    return "\n".join([*lines, *(f"{name}={value}" for name, value in server.environment)]) + "\n"


def _comment(text: str) -> str:
    """One line that ends nothing: a note may quote a node's text."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:300]


def _comments(request: Request, group: Group) -> list[str]:
    return [_HEADER, *(f"{what}: {why}" for what, why in group.reasons)]


def shell(request: Request, groups: tuple[Group, ...], servers: tuple[Server, ...]) -> dict[str, str]:
    """One script and one environment file a node."""
    files: dict[str, str] = {}
    for server in servers:
        about = "" if server.group.role == "serve" else f", {server.group.role}"
        head = "head, API on port " + str(API_PORT) if not server.index else "headless"
        lines = ["#!/bin/bash", f"# {_HEADER} Start it on {server.name} ({head}{about})."]
        lines.append("set -eu")
        if server.environment:
            # With `set -a` what the file sets is exported.
            lines += ["set -a", f'. "$(dirname "$0")/{server.name}.env"', "set +a"]
        lines += [f"exec {command_lines(request.model, server.options)}"]
        files[f"{server.name}.sh"] = "\n".join(lines) + "\n"
        if server.environment:
            files[f"{server.name}.env"] = _env_text(server)
    return files


def compose(request: Request, groups: tuple[Group, ...], servers: tuple[Server, ...]) -> dict[str, str]:
    """One compose file and one environment file a node."""
    files: dict[str, str] = {}
    for server in servers:
        service: dict[str, Any] = {
            "image": _image(request),
            "entrypoint": [],
            "command": words(request.model, server.options),
            "network_mode": "host",
            "ipc": "host",
            "cap_add": ["IPC_LOCK"],
            "ulimits": {"memlock": -1},
            "deploy": {
                "resources": {
                    "reservations": {
                        "devices": [
                            {"driver": "nvidia", "count": server.group.nodes[0].gpus, "capabilities": ["gpu"]}
                        ]
                    }
                }
            },
        }
        if _between(server.group) and all(node.rdma for node in server.group.nodes):
            # A device that is not there keeps the container from starting.
            service["devices"] = ["/dev/infiniband:/dev/infiniband"]
        document = {"services": {"vllm-server": service}}
        note = f"# {_HEADER} On {server.name}: docker compose -f {server.name}.compose.yaml up\n"
        if server.environment:
            service["env_file"] = [f"{server.name}.env"]
            files[f"{server.name}.env"] = _env_text(server)
        files[f"{server.name}.compose.yaml"] = note + _yaml(document)
    return files


def sbatch(request: Request, groups: tuple[Group, ...], servers: tuple[Server, ...]) -> dict[str, str]:
    """One job: an srun for each node, the heads first."""
    named = all(node.facts is not None for group in groups for node in group.nodes)
    gpus = groups[0].nodes[0].gpus
    lines = ["#!/bin/bash", "#SBATCH --job-name=vllm-ep", f"#SBATCH --nodes={len(servers)}"]
    lines += ["#SBATCH --ntasks-per-node=1", f"#SBATCH --gpus-per-node={gpus}", "#SBATCH --exclusive"]
    if named:
        lines.append(f"#SBATCH --nodelist={','.join(server.name for server in servers)}")
    lines += [f"# {_HEADER}", "set -u"]
    if not named:
        lines.append('nodes=( $(scontrol show hostnames "$SLURM_JOB_NODELIST") )')
    position = 0
    for group in groups:
        lines += [f"# {group.role}: " + "; ".join(f"{what}" for what, _ in group.reasons)]
        for index in range(len(group.nodes)):
            server = servers[position]
            where = shlex.quote(server.name) if named else f'"${{nodes[{position}]}}"'
            first = position - index
            address = group.nodes[0].address if named else f"${{nodes[{first}]}}"
            lines.append(_srun(request, group, server, where, address, named))
            position += 1
    lines += ["# One that ends takes the job down: the others would wait for it.", "wait -n", "exit $?"]
    return {"plan.sbatch": "\n".join(lines) + "\n"}


def _srun(request: Request, group: Group, server: Server, where: str, address: str, named: bool) -> str:
    pairs = [
        (name, value if named or name != "VLLM_NIXL_SIDE_CHANNEL_HOST" else "")
        for name, value in server.environment
    ]
    inside = [f"{name}={shlex.quote(value)}" if value else f"{name}={where}" for name, value in pairs]
    found = options(request, group, server.index, address)
    text = [f"srun --nodes=1 --ntasks=1 --nodelist={where}"]
    if inside:
        text.append("env " + " ".join(inside))
    text.append(f"vllm serve {shlex.quote(request.model)}")
    for flag, value in found:
        quoted = f'"{value}"' if value.startswith("${nodes[") else shlex.quote(value)
        text.append(f"{flag} {quoted}" if value else flag)
    return " \\\n  ".join(text) + " &"


def lws(request: Request, groups: tuple[Group, ...], servers: tuple[Server, ...]) -> dict[str, str]:
    """One LeaderWorkerSet a group, with a headless service of its own (networkConfig Shared)."""
    files: dict[str, str] = {}
    for group in groups:
        name = "vllm-ep" if group.role == "serve" else f"vllm-ep-{group.role}"
        files[f"{name}.yaml"] = "".join(
            f"# {_comment(line)}\n" for line in _comments(request, group)
        ) + _yaml(_leader_worker_set(request, group, name))
    return files


def _leader_worker_set(request: Request, group: Group, name: str) -> dict[str, Any]:
    pod_ip = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in group.variables]
    several = len(group.nodes) > 1
    rdma = _between(group) and not any(node.rdma is False for node in group.nodes)
    if several:
        # In a pod of the cluster's own network; another network plugin names it otherwise.
        environment += [{"name": key, "value": "eth0"} for key in _interfaces(group)]
    if group.role in ROLES:
        environment.append({"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", **pod_ip})

    def pod(script: str, head: bool) -> dict[str, Any]:
        gpus = {"nvidia.com/gpu": str(group.nodes[0].gpus), **({"rdma/ib": "1"} if rdma else {})}
        container: dict[str, Any] = {
            "name": "server",
            "image": _image(request),
            "command": ["/bin/bash", "-c"],
            "args": [script],
            "env": environment,
            "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
            "resources": {"limits": gpus, "requests": gpus},
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - a mount in a pod
        }
        if head:
            probe = {"httpGet": {"path": "/health", "port": API_PORT}, "periodSeconds": 10}
            container["ports"] = [{"containerPort": API_PORT, "name": "api"}]
            container["startupProbe"] = {**probe, "failureThreshold": 720}
            container["readinessProbe"] = probe
        volume = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHM}}
        return {"spec": {"containers": [container], "volumes": [volume]}}

    def script(index: int) -> str:
        # The group's own variables; a worker's start rank follows from its index.
        found = dict(options(request, group, index, "$(LWS_LEADER_ADDRESS)"))
        lines = []
        for flag, value in found.items():
            if flag == "--data-parallel-address":
                lines.append(f'{flag} "$LWS_LEADER_ADDRESS"')
            elif flag == "--data-parallel-start-rank":
                lines.append(f'{flag} "$((LWS_WORKER_INDEX * {group.local}))"')
            else:
                lines.append(f"{flag} {shlex.quote(value)}" if value else flag)
        return " \\\n  ".join([f"exec vllm serve {shlex.quote(request.model)}", *lines]) + "\n"

    template: dict[str, Any] = {"size": len(group.nodes), "restartPolicy": "RecreateGroupOnPodRestart"}
    if several:
        template["leaderTemplate"] = pod(script(0), head=True)
        template["workerTemplate"] = pod(script(1), head=False)
    else:
        template["workerTemplate"] = pod(script(0), head=True)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "leaderWorkerTemplate": template},
    }


def _between(group: Group) -> bool:
    """Whether its tokens or its cache go to other nodes."""
    return len(group.nodes) > 1 or group.role in ROLES


def _interfaces(group: Group) -> list[str]:
    names = ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"]
    return [*names, "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"] if group.backend in BY_WORKLOAD.values() else names


def _image(request: Request) -> str:
    if not re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,40}", request.version):
        raise UsageError(f"--vllm {request.version[:40]!r} names no image", hint="--vllm 0.33.0")
    return f"vllm/vllm-openai:v{request.version.replace('+', '-')}"


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, default_flow_style=False, width=110)


WRITERS: dict[str, Callable[[Request, tuple[Group, ...], tuple[Server, ...]], dict[str, str]]] = {
    "shell": shell, "sbatch": sbatch, "lws": lws, "compose": compose,
}  # fmt: skip
PORTS = (API_PORT, RPC_PORT)
