"""docker compose files: one server a service.

Interpolation: ${NAME:-default} from the .env file beside it, else unresolved; $$ is a dollar sign
(docs.docker.com/reference/compose-file/interpolation).
"""

from __future__ import annotations

import re
from dataclasses import replace

from epdoctor.launch.containers import gpu_count, image_version, memlock, size_bytes, start_in_image
from epdoctor.launch.env_files import parse_env
from epdoctor.launch.model import Pod
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.text import Builder, Script, Text, base_name, plain
from epdoctor.launch.sources import beside
from epdoctor.launch.yaml_tree import Mapping, Node, Scalar, Sequence, YamlTrouble, documents

Environment = dict[str, tuple[Text, str]]
_VARIABLE = re.compile(
    r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^{}]{0,2000}))?\}|\$([A-Za-z_][A-Za-z0-9_]*)"
)


def interpolate(text: Text, values: dict[str, Text]) -> Text:
    if "$" not in text.text:
        return text
    builder, position = Builder(), 0
    for match in _VARIABLE.finditer(text.text):
        builder.add_text(text.part(position, match.start()))
        position = match.end()
        place = text.locate(match.start())
        name = match[1] or match[4]
        if name is None:
            builder.add("$", place)
            continue
        value = values.get(name)
        operator, default = match[2] or "", match[3] or ""
        if operator.endswith("+"):
            builder.add(default if value is not None else "", place)
        elif value is not None and (value.text or not operator.startswith(":")):
            builder.add_text(value.at(place))
        elif operator.endswith("-"):
            builder.add(default, place)
        else:
            builder.add_text(Text(match[0], ((0, place),), (name,)))
    builder.add_text(text.part(position, len(text.text)))
    return builder.build(text.location)


def read_compose(reading: Reading, setting: Setting, script: Script) -> None:
    """Every service of one file."""
    values: dict[str, Text] = {}
    dotenv = beside(reading, setting, plain(".env", script.locate(0)))
    if dotenv is not None:
        values = parse_env(dotenv, plain_values=False)
    try:
        roots = [root for root in documents(script.text, script.locate) if isinstance(root, Mapping)]
    except YamlTrouble as trouble:
        reading.report(str(trouble), "YAML", trouble.location)
        return
    for root in roots:
        services = root.get("services")
        for key, service in services.items() if isinstance(services, Mapping) else ():
            if isinstance(service, Mapping):
                _service(reading, setting, key.text, service, values)


def _scalar(node: Node | None, values: dict[str, Text]) -> Text | None:
    return interpolate(node.as_text(), values) if isinstance(node, Scalar) else None


def _texts(node: Node | None, values: dict[str, Text]) -> list[Text]:
    """A list, or a text that docker splits like a shell."""
    if isinstance(node, Scalar):
        from epdoctor.launch.shell.substitution import substitute
        from epdoctor.launch.shell.syntax import words_of
        from epdoctor.launch.shell.text import text_script
        from epdoctor.launch.shell.words import Words

        text = interpolate(node.as_text(), values)
        inner = text_script(text)
        words = Words(inner, Scope(), substitute)
        return [word for start, end in words_of(text.text) for word in words.fields(start, end)]
    if isinstance(node, Sequence):
        return [interpolate(item.as_text(), values) for item in node.items if isinstance(item, Scalar)]
    return []


def _environment(
    reading: Reading, setting: Setting, service: Mapping, values: dict[str, Text]
) -> Environment:
    found: Environment = {}
    files = service.get("env_file")
    for item in files.items if isinstance(files, Sequence) else [files]:
        path = item.get("path") if isinstance(item, Mapping) else item
        text = _scalar(path, values)
        script = beside(reading, setting, text) if text is not None else None
        if script is not None:
            found.update((n, (t, "env-file")) for n, t in parse_env(script, plain_values=False).items())
    given = service.get("environment")
    if isinstance(given, Mapping):
        for key, node in given.items():
            text = _scalar(node, values)
            if text is not None and not (isinstance(node, Scalar) and node.value is None):
                found[key.text] = (text, "manifest")
            elif key.text in values:
                found[key.text] = (values[key.text], "env-file")
    for text in _texts(given, values) if isinstance(given, Sequence) else ():
        name, equals, _ = text.text.partition("=")
        if equals:
            found[name] = (text.part(len(name) + 1, len(text.text)), "manifest")
        elif name in values:
            found[name] = (values[name], "env-file")
    return found


def _gpus(service: Mapping) -> tuple[int | None, Node | None]:
    """How many, and where that stands."""
    devices: Node | None = service
    for name in ("deploy", "resources", "reservations", "devices"):
        devices = devices.get(name) if isinstance(devices, Mapping) else None
    for device in devices.items if isinstance(devices, Sequence) else ():
        if not isinstance(device, Mapping):
            continue
        ids, count = device.get("device_ids"), device.get("count")
        if isinstance(ids, Sequence):
            return len(ids.items), ids
        if isinstance(count, Scalar) and isinstance(count.value, int):
            return count.value, count
    whole = service.get("gpus")
    return (gpu_count(whole.text), whole) if isinstance(whole, Scalar) else (None, None)


def _pod(name: str, key: Mapping, image: str, values: dict[str, Text]) -> Pod:
    def text(field: str) -> str:
        found = _scalar(key.get(field), values)
        return found.text if found is not None else ""

    ulimits = key.get("ulimits")
    limit = ulimits.get("memlock") if isinstance(ulimits, Mapping) else None
    if isinstance(limit, Mapping):
        limit = limit.get("soft")
    shm = text("shm_size")
    mounts = key.get("volumes")
    mounted = any(
        isinstance(item, Scalar) and item.text.split(":")[1:2] == ["/dev/shm"]  # noqa: S108 - a mount
        for item in (mounts.items if isinstance(mounts, Sequence) else ())
    )
    raw = key.plain()
    added = key.get("cap_add")
    gpus, gpu_place = _gpus(key)
    named = (("gpus", gpu_place), ("shm", key.get("shm_size")), ("memlock", limit), ("security", added))
    return Pod(
        kind="compose service",
        name=name,
        container=text("container_name") or name,
        location=key.location,
        gpus=gpus,
        capabilities=tuple(t.text.upper() for t in _texts(added, values))
        if isinstance(added, Sequence)
        else (),
        privileged=text("privileged").lower() == "true",
        host_network=text("network_mode") == "host",
        host_ipc=text("ipc") == "host",
        shm_bytes=size_bytes(shm) if shm else 0 if mounted else None,
        shm_mounted=bool(shm) or mounted,
        memlock_bytes=memlock(limit.text) if isinstance(limit, Scalar) else None,
        image=image,
        places={name: node.location for name, node in named if node is not None},
        raw=raw if isinstance(raw, dict) else {},
    )


def _service(
    reading: Reading, setting: Setting, name: str, service: Mapping, values: dict[str, Text]
) -> None:
    image = _scalar(service.get("image"), values)
    pod = _pod(name, service, image.text if image is not None else "", values)
    there = replace(
        setting, name=f"service {name} of {base_name(setting.name)}", pod=pod, in_image=True,
        vllm_version=image_version(pod.image) or setting.vllm_version,
    )  # fmt: skip
    environment = _environment(reading, setting, service, values)
    entrypoint, command = _texts(service.get("entrypoint"), values), _texts(service.get("command"), values)
    start_in_image(reading, there, Scope(limits=reading.limits), pod.image, entrypoint, command, environment)
