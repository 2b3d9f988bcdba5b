"""`vllm serve --config FILE`: YAML whose keys are flags, below the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from epdoctor.launch.flags import Flags
from epdoctor.launch.model import Option, Value
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.text import Text
from epdoctor.launch.sources import beside
from epdoctor.launch.yaml_tree import Mapping, Scalar, Sequence, YamlTrouble, documents

if TYPE_CHECKING:
    from epdoctor.launch.arguments import Parsed


def merge(
    reading: Reading, setting: Setting, parsed: Parsed, config: Option, flags: Flags, version: str
) -> None:
    """Add what the file says and the command line does not."""
    from epdoctor.launch.arguments import canonical

    value = config.value
    found = beside(
        reading, setting, Text(value.text, ((0, value.location),), value.unresolved, value.runtime)
    )
    if found is None:
        return
    try:
        root = next(documents(found.text, found.locate), None)
    except YamlTrouble as trouble:
        reading.report(str(trouble), "YAML", trouble.location)
        return
    if not isinstance(root, Mapping):
        reading.report("--config: no mapping of flags", "flag: value", found.locate(0))
        return
    for key, node in root.items():
        name, negated, _ = canonical("--" + key.text.lstrip("-"), flags)
        written = f"{found.path}: {key.text}"
        if isinstance(node, Scalar):
            text = node.text
            if node.value is False:
                # vLLM leaves out what is false.
                continue
            text = "" if node.value is True else text
        elif isinstance(node, Sequence) and all(isinstance(item, Scalar) for item in node.items):
            text = " ".join(item.text for item in node.items if isinstance(item, Scalar))
        else:
            text = json.dumps(node.plain(), default=str)
        option = Option(
            name,
            Value(text, node.location, source="config file"),
            written,
            negated,
            flags.known(name, version),
        )
        if name == "model" and parsed.model is None:
            parsed.model = option.value
        if name in parsed.options:
            parsed.repeated.append(option)
        else:
            parsed.options[name] = option
