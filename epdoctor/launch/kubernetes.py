"""Kubernetes manifests: every pod that a workload makes, with its containers' commands and variables.

A LeaderWorkerSet of size N is N pods, each with its own LWS_WORKER_INDEX (variables that the LeaderWorkerSet
controller sets: kubernetes-sigs/lws docs/reference/labels-annotations-and-environment-variables). Group 0 stands for
all groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from epdoctor.launch.commands import run
from epdoctor.launch.containers import image_version, start_in_image
from epdoctor.launch.kubernetes_fields import (
    Environment,
    environment_of,
    items_of,
    mapping_of,
    number_of,
    text_of,
    words_of,
)
from epdoctor.launch.model import Resource
from epdoctor.launch.other_objects import lone_containers, shell_texts
from epdoctor.launch.pods import pod_of
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.text import Script, Text, plain, text_script
from epdoctor.launch.templates import fill, report_unfilled, unfilled
from epdoctor.launch.yaml_tree import Mapping, Node, Scalar, Sequence, YamlTrouble, documents
from epdoctor.model import Location, Severity

_WORKLOADS = {
    "Pod": (), "Deployment": ("template",), "StatefulSet": ("template",), "DaemonSet": ("template",),
    "ReplicaSet": ("template",), "Job": ("template",), "CronJob": ("jobTemplate", "spec", "template"),
}  # fmt: skip
_NO_LAUNCH = ("Service", "ConfigMap", "Secret", "CustomResourceDefinition")
MAX_PODS = 512


@dataclass(frozen=True)
class _Workload:
    kind: str
    name: str
    namespace: str
    spec: Mapping
    """The pod's spec."""
    replicas: int | None = None
    size: int | None = None
    index: int | None = None
    role: str = ""
    """"leader", "worker 3", "pod 1"; empty: one server stands for all copies."""
    group: str = ""
    variables: Environment = field(default_factory=dict)


def read_manifests(reading: Reading, setting: Setting, script: Script) -> None:
    """Every workload, Service and ConfigMap of one text."""
    text = script.text
    templates = unfilled(text)
    if templates:
        text = fill(text)
    if templates and "vllm" in text.lower():
        report_unfilled(reading, script.text, script.locate)
    objects: list[Mapping] = []
    try:
        for root in documents(text, script.locate):
            objects += _objects(root, 0)
    except YamlTrouble as trouble:
        reading.report(str(trouble), "YAML", trouble.location)
    configs = _config_maps(reading, objects)
    for item in objects:
        kind, name, namespace = (
            text_of(item, "kind"),
            _name(item),
            text_of(mapping_of(item, "metadata"), "namespace"),
        )
        made = False
        before = len(reading.servers)
        for workload in _workloads(reading, item, kind, name, namespace):
            made = True
            _containers(reading, setting, workload, configs)
        if len(reading.servers) == before and kind not in _NO_LAUNCH:
            _other(reading, setting, item, kind, name, namespace, configs)
        if not made and kind and kind != "Secret":
            raw = item.plain()
            reading.resources.append(
                Resource(kind, name, namespace, _name_place(item), raw if isinstance(raw, dict) else {})
            )


def _objects(root: Node, depth: int) -> list[Mapping]:
    if not isinstance(root, Mapping) or depth > 5:
        return [found for item in root.items[:2000] for found in _objects(item, depth + 1)] if (
            isinstance(root, Sequence) and depth <= 5
        ) else []  # fmt: skip
    if text_of(root, "kind").endswith("List") and isinstance(items := root.get("items"), Sequence):
        return [found for item in items.items for found in _objects(item, depth + 1)]
    return [root]


def _name(item: Mapping) -> str:
    metadata = mapping_of(item, "metadata")
    return text_of(metadata, "name") or text_of(metadata, "generateName")


def _name_place(item: Mapping) -> Location:
    metadata = mapping_of(item, "metadata")
    named = metadata.get("name") if metadata is not None else None
    return item.location if named is None else named.location


def _config_maps(reading: Reading, objects: list[Mapping]) -> dict[str, dict[str, Text]]:
    """Data of the ConfigMaps in the text; their scripts can be started by name."""
    found: dict[str, dict[str, Text]] = {}
    for item in objects:
        data = mapping_of(item, "data")
        if text_of(item, "kind") != "ConfigMap" or data is None:
            continue
        texts = {key.text: value.as_text() for key, value in data.items() if isinstance(value, Scalar)}
        found[_name(item)] = texts
        for key, text in texts.items():
            if "\n" in text.text:
                reading.written[key] = text
    return found


def _workloads(reading: Reading, item: Mapping, kind: str, name: str, namespace: str) -> Iterator[_Workload]:
    spec = mapping_of(item, "spec")
    if kind == "LeaderWorkerSet" and spec is not None:
        yield from _leader_worker_set(reading, kind, spec, name, namespace)
    elif kind == "JobSet":
        for job in items_of(spec, "replicatedJobs"):
            job_spec = mapping_of(job, "template", "spec")
            pod = mapping_of(job_spec, "template", "spec")
            if pod is not None and job_spec is not None:
                copies = number_of(job, "replicas") or 1
                yield from _copies(
                    kind, f"{name}/{text_of(job, 'name')}", namespace, pod,
                    number_of(job_spec, "completions") or number_of(job_spec, "parallelism") or 1, copies,
                    f"JobSet/{name} {item.location}", "JOB_COMPLETION_INDEX",
                )  # fmt: skip
    elif kind in _WORKLOADS:
        path = _WORKLOADS[kind]
        owner = mapping_of(spec, *path[:-1]) if len(path) > 1 else spec
        pod = spec if kind == "Pod" else mapping_of(spec, *path, "spec")
        if pod is None:
            return
        if kind == "StatefulSet":
            yield from _copies(kind, name, namespace, pod, number_of(spec, "replicas") or 1, None,
                               f"StatefulSet/{name} {item.location}", "HOSTNAME")  # fmt: skip
        elif kind == "Job":
            yield from _copies(kind, name, namespace, pod, number_of(owner, "completions") or 1, None,
                               f"Job/{name} {item.location}", "JOB_COMPLETION_INDEX")  # fmt: skip
        else:
            yield _Workload(kind, name, namespace, pod, replicas=number_of(spec, "replicas"))
    elif kind not in _NO_LAUNCH:
        groups = list(_groups(spec, "", 0)) if spec is not None else []
        for role, group in groups:
            yield from _leader_worker_set(reading, kind, group, f"{name}-{role}" if role else name, namespace)
        for number, pod in enumerate(_pod_specs(item, 0) if not groups else ()):
            yield _Workload(kind or "?", name if not number else f"{name} {number + 1}", namespace, pod)


def _pod_specs(node: Node, depth: int) -> Iterator[Mapping]:
    """Pod specs inside objects of kinds that are not known here."""
    if depth > 12:
        return
    if isinstance(node, Mapping):
        if isinstance(node.get("containers"), Sequence):
            yield node
            return
        for value in [pair[1] for pair in node.items()]:
            yield from _pod_specs(value, depth + 1)
    elif isinstance(node, Sequence):
        for item in node.items[:200]:
            yield from _pod_specs(item, depth + 1)


def _groups(node: Node, role: str, depth: int) -> Iterator[tuple[str, Mapping]]:
    """(name of the role, spec) of each LeaderWorkerSet inside an object: a DisaggregatedSet has several."""
    if depth > 8:
        return
    if isinstance(node, Mapping):
        if isinstance(node.get("leaderWorkerTemplate"), Mapping):
            yield role, node
            return
        role = text_of(node, "name") or role
        for value in [pair[1] for pair in node.items()]:
            yield from _groups(value, role, depth + 1)
    elif isinstance(node, Sequence):
        for item in node.items[:200]:
            yield from _groups(item, role, depth + 1)


def _leader_worker_set(
    reading: Reading, kind: str, spec: Mapping, name: str, namespace: str
) -> Iterator[_Workload]:
    template = mapping_of(spec, "leaderWorkerTemplate")
    size_node = template.get("size") if template is not None else None
    size = number_of(template, "size")
    if size is None and isinstance(size_node, Scalar):
        reading.report(
            f"size: {size_node.text} is not filled in", "the number of pods of a group", size_node.location,
            severity=Severity.WARNING,
        )  # fmt: skip
    worker = mapping_of(template, "workerTemplate", "spec")
    leader = mapping_of(template, "leaderTemplate", "spec") or worker
    replicas = number_of(spec, "replicas")
    known = size is not None or size_node is None
    for index in range(min(size or 1, MAX_PODS)):
        pod = leader if index == 0 else worker
        if pod is None:
            continue
        place = pod.location

        def variable(name: str, number: int, place: Location = place) -> Text:
            return plain(str(number), place) if known else Text(f"${name}", ((0, place),), (name,))

        address = Text("$LWS_LEADER_ADDRESS", ((0, place),), (), "address of the group's leader")
        variables: Environment = {
            "LWS_LEADER_ADDRESS": (address, "manifest"),
            "LWS_GROUP_SIZE": (variable("LWS_GROUP_SIZE", size or 1), "manifest"),
            "LWS_WORKER_INDEX": (variable("LWS_WORKER_INDEX", index), "manifest"),
        }
        yield _Workload(
            kind, name, namespace, pod, 1 if replicas is None and known else replicas, size if known else None,
            index if known else None, "" if not known else "leader" if index == 0 else f"worker {index}",
            f"{kind}/{name} {spec.location}", variables,
        )  # fmt: skip


def _copies(
    kind: str,
    name: str,
    namespace: str,
    pod: Mapping,
    count: int,
    replicas: int | None,
    group: str,
    variable: str,
) -> Iterator[_Workload]:
    """Pods that tell themselves apart by a number are each a server; alike ones are one."""
    place = pod.location
    numbered = count > 1 and _mentions(pod, (variable, "pod-index", "job-completion-index", "hostname"))
    if not numbered:
        yield _Workload(kind, name, namespace, pod, count if replicas is None else replicas)
        return
    for index in range(min(count, MAX_PODS)):
        text = str(index) if variable != "HOSTNAME" else f"{name}-{index}"
        yield _Workload(
            kind, name, namespace, pod, replicas, count if kind == "JobSet" else None, index, f"pod {index}", group,
            {variable: (plain(text, place), "manifest")},
        )  # fmt: skip


def _mentions(node: Node, words: tuple[str, ...], depth: int = 0) -> bool:
    if depth > 12:
        return False
    if isinstance(node, Scalar):
        return any(word in node.text for word in words)
    children = node.items if isinstance(node, Sequence) else [value for _, value in node.items()]
    return any(_mentions(child, words, depth + 1) for child in children[:2000])


def _other(
    reading: Reading, setting: Setting, item: Mapping, kind: str, name: str, namespace: str,
    configs: dict[str, dict[str, Text]],
) -> None:  # fmt: skip
    """What starts vLLM inside an object of a kind that is not known: containers, else texts for a shell."""
    before = len(reading.servers)
    for role, parent, container in lone_containers(item):
        workload = _Workload(kind or "?", f"{name} {role}".strip(), namespace, parent)
        _containers(reading, setting, workload, configs, [container])
    if len(reading.servers) > before:
        return
    for key, text, variables in shell_texts(item):
        scope = Scope(limits=reading.limits)
        called = f"{name or setting.name} {key}".strip()
        run(reading, replace(setting, name=called), scope, text_script(text), variables, ())


def _containers(
    reading: Reading, setting: Setting, workload: _Workload, configs: dict[str, dict[str, Text]],
    lone: list[Mapping] | None = None,
) -> None:  # fmt: skip
    for container in items_of(workload.spec, "containers") if lone is None else lone:
        name = f"{workload.kind}/{workload.name}" + (f" {workload.role}" if workload.role else "")
        environment = environment_of(reading, workload.variables, workload.index, container, configs)
        pod = pod_of(
            workload.kind,
            workload.name,
            workload.spec,
            container,
            replicas=workload.replicas,
            size=workload.size,
        )
        if lone is not None:
            pod = replace(pod, partial=True)
        there = replace(
            setting, name=name, node=f"pod {workload.index}" if workload.index is not None else "",
            index=workload.index, group=workload.group, pod=pod, in_image=True,
            vllm_version=image_version(pod.image) or setting.vllm_version,
        )  # fmt: skip
        before = len(reading.servers)
        command = words_of(reading, container, "command", environment)
        arguments = words_of(reading, container, "args", environment)
        scope = Scope(limits=reading.limits)
        start_in_image(reading, there, scope, pod.image, command, arguments, environment)
        if pod.partial and lone is None and len(reading.servers) > before:
            reading.report(
                f"{workload.kind}/{workload.name} names no image: a patch, what it lacks is not judged",
                "the whole manifest: kubectl kustomize FOLDER > all.yaml",
                pod.location,
                severity=Severity.INFO,
            )
        if workload.kind in ("StatefulSet", "Job"):
            _ungroup(reading, before)


def _ungroup(reading: Reading, since: int) -> None:
    """Where an address says with whom a pod serves, that counts; without one each copy may be on its own."""
    for position in range(since, len(reading.servers)):
        reading.servers[position] = replace(reading.servers[position], group="")
