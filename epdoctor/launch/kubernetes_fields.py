"""Fields of a container in a manifest: its words, its variables, and what the kubelet puts for $(NAME)."""

from __future__ import annotations

import re
from dataclasses import replace

from epdoctor.launch.reading import Reading
from epdoctor.launch.shell.text import Builder, Text, plain
from epdoctor.launch.yaml_tree import Mapping, Node, Scalar, Sequence
from epdoctor.model import Location

Environment = dict[str, tuple[Text, str]]
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_INDEXED = {
    "metadata.labels['apps.kubernetes.io/pod-index']", "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']",
    "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    "metadata.labels['batch.kubernetes.io/job-completion-index']",
}  # fmt: skip


def mapping_of(node: Node | None, *names: str) -> Mapping | None:
    for name in names:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else None


def items_of(node: Node | None, name: str) -> list[Mapping]:
    found = node.get(name) if isinstance(node, Mapping) else None
    return [item for item in found.items if isinstance(item, Mapping)] if isinstance(found, Sequence) else []


def text_of(node: Node | None, name: str) -> str:
    found = node.get(name) if isinstance(node, Mapping) else None
    return found.text if isinstance(found, Scalar) else ""


def number_of(node: Node | None, name: str) -> int | None:
    found = node.get(name) if isinstance(node, Mapping) else None
    value = found.value if isinstance(found, Scalar) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 100_000 else None


def words_of(reading: Reading, container: Mapping, name: str, environment: Environment) -> list[Text]:
    node = container.get(name)
    if isinstance(node, Scalar) and node.text:
        if "<<" not in node.text:
            reading.report(f"{name} is a text", f"a list: {name}: [...]", node.location)
        return [expand(node.as_text(), environment)]
    found: list[Text] = []
    for item in node.items if isinstance(node, Sequence) else ():
        if not isinstance(item, Scalar):
            reading.report(f"{name} holds something that is no text", "texts only", item.location)
            continue
        if not isinstance(item.value, str) and "<<" not in item.text:
            reading.report(
                f"{name} holds {item.text or 'nothing'}, which is no text: the API server refuses it",
                f'quotes: "{item.text}"',
                item.location,
            )
        found.append(expand(item.as_text(), environment))
    return found


def environment_of(
    reading: Reading, variables: Environment, index: int | None, container: Mapping,
    configs: dict[str, dict[str, Text]],
) -> Environment:  # fmt: skip
    """The container's variables; `variables` come from the controller, `index` tells the pods of a set apart."""
    found: Environment = dict(variables)
    for source in items_of(container, "envFrom"):
        reference = text_of(mapping_of(source, "configMapRef"), "name")
        prefix = text_of(source, "prefix")
        found.update((prefix + key, (text, "manifest")) for key, text in configs.get(reference, {}).items())
    for entry in items_of(container, "env"):
        name_node = entry.get("name")
        if not isinstance(name_node, Scalar) or not name_node.text:
            continue
        value = entry.get("value")
        if isinstance(value, Scalar):
            if not isinstance(value.value, str) and value.value is not None and "<<" not in value.text:
                reading.report(
                    f"{name_node.text} is {value.text}, which is no text: the API server refuses it",
                    f'quotes: "{value.text}"',
                    value.location,
                )
            found[name_node.text] = (expand(value.as_text(), found), "manifest")
        else:
            place = name_node.location
            found[name_node.text] = (
                _value_from(entry, name_node.text, place, index, container, configs),
                "manifest",
            )
    return found


def _value_from(
    entry: Mapping, name: str, place: Location, index: int | None, container: Mapping,
    configs: dict[str, dict[str, Text]],
) -> Text:  # fmt: skip
    source = mapping_of(entry, "valueFrom")
    path = text_of(mapping_of(source, "fieldRef"), "fieldPath").replace('"', "'")
    if path in _INDEXED and index is not None:
        return plain(str(index), place)
    if path:
        described = {"status.podIP": "pod IP", "status.hostIP": "host IP", "spec.nodeName": "node name",
                     "metadata.name": "pod name", "metadata.namespace": "namespace"}.get(path, f"field {path}")  # fmt: skip
        return Text(f"$({name})", ((0, place),), (), described)
    config = mapping_of(source, "configMapKeyRef")
    if config is not None:
        text = configs.get(text_of(config, "name"), {}).get(text_of(config, "key"))
        return text if text is not None else Text(f"$({name})", ((0, place),), (name,))
    resource = text_of(mapping_of(source, "resourceFieldRef"), "resource")
    if resource:
        kind, _, what = resource.partition(".")
        given = text_of(mapping_of(container, "resources", kind), what)
        return plain(given, place) if given else Text(f"$({name})", ((0, place),), (), f"resource {resource}")
    secret = text_of(mapping_of(source, "secretKeyRef"), "name")
    if secret:
        return Text(f"$({name})", ((0, place),), (), f"secret {secret}")
    return plain("", place)


def expand(text: Text, environment: Environment) -> Text:
    """$(NAME) as the kubelet expands it: once, from the container's variables; a name it does not know stays.

    Templates that nobody filled in make the text unresolved."""
    if "<<" in text.text:
        names = re.findall(r"<<([^<>]*)>>", text.text[:10_000])
        if names:
            text = replace(text, unresolved=tuple(dict.fromkeys("{{" + name + "}}" for name in names)))
    if "$(" not in text.text and "$$" not in text.text:
        return text
    builder = Builder()
    position = 0
    missing: list[str] = []
    for match in _REFERENCE.finditer(text.text):
        name = match[1]
        if name is not None and name not in environment:
            # In a shell's text this is a command to run; a plain word keeps it as it is written.
            if not any(char in " \t\n" for char in text.text):
                missing.append(name)
            continue
        builder.add_text(text.part(position, match.start()))
        builder.add_text(plain("$", text.locate(match.start())) if name is None else (
            environment[name][0].at(text.locate(match.start()))))  # fmt: skip
        position = match.end()
    builder.add_text(text.part(position, len(text.text)))
    built = builder.build(text.location)
    return replace(built, unresolved=(*built.unresolved, *dict.fromkeys(missing)))
