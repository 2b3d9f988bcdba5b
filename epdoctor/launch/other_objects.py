"""Objects of kinds that are not known here: containers and shell texts inside them.

A DynamoGraphDeployment has `mainContainer`, a serving runtime `runner`, a SkyPilot task `run: |`. Their operators
add what is not written, so what such a container lacks is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from epdoctor.launch.kubernetes_fields import Environment
from epdoctor.launch.shell.text import Text
from epdoctor.launch.yaml_tree import Mapping, Node, Scalar, Sequence

MAX_DEPTH = 14
_COMMAND = re.compile(
    r"(?m)^[ \t]*(?:(?:exec|nohup|env|time|sudo)[ \t]+|[A-Z_][A-Z0-9_]*=\S*[ \t]+){0,20}"
    r"(?:\S*/)?(?:vllm[ \t]+serve\b|python3?(?:\.\d+)?[ \t]+-m[ \t]+(?:vllm\.entrypoints\.|dynamo\.vllm\b))"
)
_FOR_SHELL = re.compile(r"-[a-z]*c")
_VARIABLES = ("envs", "env", "environment")


def lone_containers(node: Node, name: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping, Mapping]]:
    """(name, what it stands in, container) of each mapping with an image and a command or arguments."""
    if depth > MAX_DEPTH:
        return
    if isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(value, Mapping) and _is_container(value):
                yield name or key.text, node, value
            elif key.text not in ("containers", "initContainers"):
                yield from lone_containers(value, _role(node, name, key.text, depth), depth + 1)
    elif isinstance(node, Sequence):
        for item in node.items[:200]:
            yield from lone_containers(item, name, depth + 1)


def _role(node: Mapping, name: str, key: str, depth: int) -> str:
    """The service's own name: `services: {decode: ...}`, or `name: decode` beside."""
    own = node.get("name")
    if isinstance(own, Scalar) and own.text and depth > 1:
        return own.text
    return name or (key if depth > 1 else "")


def _is_container(node: Mapping) -> bool:
    return isinstance(node.get("image"), Scalar) and (
        isinstance(node.get("command"), (Sequence, Scalar))
        or isinstance(node.get("args"), (Sequence, Scalar))
    )


def shell_texts(
    node: Node, name: str = "", depth: int = 0, for_shell: bool = False
) -> Iterator[tuple[str, Text, Environment]]:
    """(key, text, variables beside it) of each text with a line that starts vLLM. Prose that names it is none."""
    if depth > MAX_DEPTH:
        return
    if isinstance(node, Scalar):
        if "vllm" in node.text and "```" not in node.text and _COMMAND.search(node.text[:200_000]):
            text = node.as_text()
            yield name, text if for_shell else _one_command(text), {}
    elif isinstance(node, Sequence):
        before = ""
        for item in node.items[:2000]:
            # [sh, -c, TEXT]
            yield from shell_texts(item, name, depth + 1, _FOR_SHELL.fullmatch(before) is not None)
            before = item.text[:20] if isinstance(item, Scalar) else ""
    else:
        beside = _variables(node)
        for key, value in node.items():
            if key.text not in ("description", "metadata", "guide"):
                for found, text, inner in shell_texts(value, key.text, depth + 1):
                    yield found, text, {**beside, **inner}


def _one_command(text: Text) -> Text:
    """A command over lines without backslashes, as a program takes it that splits the text itself.

    Only where all that follows the first line can be nothing else than its options and their values."""
    lines = text.text.split("\n")
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    rest = [line.strip() for line in lines[first + 1 :] if line.strip()]
    options = sum(line.startswith("--") for line in rest)
    if not options or "\\\n" in text.text or not _COMMAND.match(lines[first] + "\n"):
        return text
    if any(line[0].isalpha() and "=" not in line and len(line.split()) > 1 for line in rest):
        return text
    return replace(text, text=text.text.replace("\n", " "))


def _variables(node: Mapping) -> Environment:
    found: Environment = {}
    for name in _VARIABLES:
        given = node.get(name)
        for key, value in given.items() if isinstance(given, Mapping) else ():
            if isinstance(value, Scalar) and value.value is not None and key.text.isidentifier():
                found[key.text] = (value.as_text(), "manifest")
    return found
