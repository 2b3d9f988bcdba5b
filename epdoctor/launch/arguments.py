"""A vLLM command line as a server: its model, its options by canonical name, its stray words.

Normalised as vLLM 0.33.0 does it (vllm/utils/argparse_utils.py): underscores are dashes up to the first dot,
-O3 is --optimization-level 3, the last of a repeated option wins, --config FILE lies below the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from epdoctor.launch.flags import Flag, Flags, load
from epdoctor.launch.model import Option, Server, Value
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.text import Text
from epdoctor.model import Location, Severity

MODULES = (
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.api_server",
)
"""`python -m` of these is `vllm serve` (the second one after the word "serve")."""
FRONT_ENDS = ("dynamo.vllm",)
"""Modules around vLLM's engine: they take its options beside their own, and place the ranks themselves."""
_NEGATIVE = re.compile(r"-\d+(\.\d*)?$|-\.\d+$")
MAX_WORDS = 5000
NO_VALUE = "no value"
"""Source of the empty value of an option that stands alone."""


def looks_like_option(text: str) -> bool:
    return len(text) > 1 and text.startswith("-") and not _NEGATIVE.match(text) and " " not in text


@dataclass
class Parsed:
    model: Value | None = None
    options: dict[str, Option] = field(default_factory=dict)
    repeated: list[Option] = field(default_factory=list)
    stray: list[Value] = field(default_factory=list)

    def put(self, option: Option) -> None:
        before = self.options.pop(option.name, None)
        if before is not None:
            self.repeated.append(before)
        self.options[option.name] = option


def canonical(written: str, flags: Flags) -> tuple[str, bool, Flag | None]:
    """(canonical name, negated, flag) of a flag as written, without its `=value`."""
    if not written.startswith("--"):
        base, dot, key = written.partition(".")
        name = flags.shorts.get(base, "")
        if name:
            return name + dot + key, False, flags.get(name)
        return written.lstrip("-"), False, None
    base, dot, key = written[2:].partition(".")
    base = base.replace("_", "-")
    flag = flags.flags.get(base)
    if flag is None and base.startswith("no-") and (positive := flags.flags.get(base[3:])) is not None:
        return base[3:], positive.paired, positive if positive.paired else None
    return base + dot + key, False, flag


def _abbreviated(name: str, flags: Flags, version: str) -> tuple[str, bool, Flag | None]:
    """argparse takes the beginning of a long option where only one option begins so (allow_abbrev)."""
    base, dot, key = name.partition(".")
    if len(base) < 3:
        return name, False, None
    longer = [full for full in flags.flags if full.startswith(base) and flags.known(full, version)]
    off = [
        full
        for full, flag in flags.flags.items()
        if flag.paired and f"no-{full}".startswith(base) and flags.known(full, version)
    ]
    if len(longer) + len(off) != 1:
        return name, False, None
    full = (longer or off)[0]
    return full + dot + key, bool(off), flags.flags[full]


def parse_words(words: Sequence[Text], flags: Flags, version: str) -> Parsed:
    """What `vllm serve` makes of the words after `serve`."""
    parsed = Parsed()
    position = 0
    words = words[:MAX_WORDS]
    while position < len(words):
        word = words[position]
        position += 1
        if word.text == "--":
            continue
        if not looks_like_option(word.text.partition("=")[0]) or (word.unresolved and word.text[:1] == "$"):
            if parsed.model is None and (not parsed.options or _may_be_model(word)):
                parsed.model = word.value()
            else:
                parsed.stray.append(word.value())
            continue
        written, equals, _ = word.text.partition("=")
        if written.startswith("-O") and not written.startswith("--"):
            position = _optimization(parsed, word, words, position)
            continue
        name, negated, flag = canonical(written, flags)
        if flag is None and written.startswith("--"):
            name, negated, flag = _abbreviated(name, flags, version)
        known = flags.known(name, version) and not (negated is False and flag is None)
        kind = flag.kind if flag is not None else ""
        if "." in name:
            # --eplb-config.num_redundant_experts 32: one key of a JSON option
            kind, known = "json", known and kind in ("json", "str", "choice", "")
        if equals:
            value = word.part(len(written) + 1, len(word.text)).value()
        else:
            value, position = _value(word, words, position, kind, negated)
        parsed.put(Option(name, value, written, negated, known))
    return parsed


def _may_be_model(word: Text) -> bool:
    """After options, a word that is not known is more likely a bag of further options."""
    return not word.unresolved or any("MODEL" in name.upper() for name in word.unresolved)


def _optimization(parsed: Parsed, word: Text, words: Sequence[Text], position: int) -> int:
    """-O3, -O=3, -O 3, and the older -O '{...}' and -O.mode=3 of the compilation config."""
    rest = word.text[2:]
    if rest.startswith("."):
        key, equals, _ = rest[1:].partition("=")
        value = word.part(len(word.text) - len(_), len(word.text)).value()
        if not equals and position < len(words):
            value, position = words[position].value(), position + 1
        parsed.put(Option(f"compilation-config.{key}", value, word.text.partition("=")[0]))
        return position
    if rest:
        start = 3 if rest.startswith("=") else 2
        value = word.part(start, len(word.text)).value()
    elif position < len(words):
        value, position = words[position].value(), position + 1
    else:
        value = Value("", word.location)
    name = "compilation-config" if value.text.startswith("{") else "optimization-level"
    parsed.put(Option(name, value, "-O"))
    return position


def _value(word: Text, words: Sequence[Text], position: int, kind: str, negated: bool) -> tuple[Value, int]:
    """The option's value and the position after it."""
    alone = Value("", word.location, source=NO_VALUE)
    if kind == "switch" or negated or position >= len(words):
        return alone, position
    following = words[position]
    is_option = looks_like_option(following.text.partition("=")[0])
    if kind == "list":
        taken: list[Text] = []
        while position < len(words) and not looks_like_option(words[position].text.partition("=")[0]):
            taken.append(words[position])
            position += 1
        if not taken:
            return alone, position
        joined = " ".join(text.text for text in taken)
        unresolved = tuple(dict.fromkeys(name for text in taken for name in text.unresolved))
        runtime = next((text.runtime for text in taken if text.runtime), "")
        return Value(joined, taken[0].location, unresolved, "", runtime), position
    if is_option:
        return alone, position
    return following.value(), position + 1


def visible(environment: Mapping[str, Value], setting: Setting) -> int | None:
    """GPUs that the process sees, as far as the files say."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is not None and value.known:
        listed = [part for part in value.text.replace(" ", "").split(",") if part]
        if value.text.strip().lower() in ("all", "void"):
            return None
        return len(listed)
    if setting.visible_gpus is not None:
        return setting.visible_gpus
    return setting.pod.gpus if setting.pod is not None else None


def add_server(
    reading: Reading,
    setting: Setting,
    words: Sequence[Text],
    environment: Mapping[str, tuple[Text, str]],
    location: Location,
    front_end: str = "",
) -> None:
    """A server from the words after `vllm serve` (or the module's name)."""
    flags = load()
    version = reading.vllm_version or setting.vllm_version
    parsed = parse_words(words, flags, version)
    if front_end:
        # Options of its own are not in the table; what resembles one of vLLM's is a slip.
        parsed.options = {
            name: option
            if option.known_to_vllm or (flags.similar(name, version) and not name.startswith("dyn-"))
            else replace(option, known_to_vllm=True)
            for name, option in parsed.options.items()
        }
    config = parsed.options.get("config")
    if config is not None:
        from epdoctor.launch.config_file import merge

        merge(reading, setting, parsed, config, flags, version)
    model = parsed.model
    given = parsed.options.get("model")
    if given is not None and (model is None or given.written.startswith("--")):
        # vLLM moves --model in front of the positional one, which then belongs to nothing.
        if model is not None:
            parsed.stray.insert(0, model)
        model = given.value
    for value in (model, *(option.value for option in parsed.options.values()), *parsed.stray):
        for name in value.unresolved if value is not None else ():
            if name.startswith("<") and not name.endswith("_>") and value is not None:
                reading.report(
                    f"{name} is not filled in",
                    "a value in its place",
                    value.location,
                    severity=Severity.WARNING,
                )
    values = {name: text.value(source) for name, (text, source) in environment.items()}
    reading.add(
        Server(
            name=setting.name,
            kind=setting.kind,
            location=location,
            model=model,
            options=parsed.options,
            repeated=tuple(parsed.repeated),
            environment=values,
            node=setting.node,
            machine=setting.machine if not setting.node and setting.pod is None else "",
            index=setting.index,
            group=setting.group,
            pod=setting.pod,
            vllm_version=version,
            visible_gpus=visible(values, setting),
            stray=tuple(parsed.stray),
            front_end=front_end,
        )
    )
