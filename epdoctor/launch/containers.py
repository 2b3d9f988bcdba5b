"""docker run and its kin: what the container gets, and vLLM's version from the image's tag."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from epdoctor.launch.model import Pod
from epdoctor.launch.shell.text import Text
from epdoctor.launch.sources import beside

if TYPE_CHECKING:
    from epdoctor.launch.reading import Reading, Setting
    from epdoctor.launch.shell.scope import Scope

Environment = dict[str, tuple[Text, str]]
_FLAGS = frozenset(
    ("-d", "--detach", "-i", "--interactive", "-t", "--tty", "-it", "-ti", "-dit", "-itd", "-id", "-di", "--rm",
     "--privileged", "--init", "-P", "--publish-all", "--read-only", "--oom-kill-disable", "--no-healthcheck",
     "--sig-proxy", "-q", "--quiet", "--replace", "-td", "-dt")
)  # fmt: skip
_TAG = re.compile(r"v?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)(?:(?:[.-]|rc|post|dev).*)?")


_TWO_IN_ONE = re.compile(r"(--?[A-Za-z][\w.-]*)[ \t]+(\S.*)", re.S)
_RUNS_TEXT = re.compile(r"-[a-z]*c")
"""bash -c, -lc, -ec: what follows is a text with options of its own."""


_INSIDE = re.compile(r"(?:^|[-_])v(\d{1,3}\.\d{1,3}\.\d{1,3})(?![\d.])")
_NAMED = re.compile(r"vllm[-_]?v?(\d{1,3}\.\d{1,3}\.\d{1,3})(?![\d.])")


def image_version(image: str) -> str:
    """vLLM's version where an image of vLLM is named with its release: vllm/vllm-openai:v0.33.0; else empty.

    Builds of others: aibrix/vllm-openai:lmcache-v0.8.5-20250418, rocm/vllm:rocm6.4.1_vllm_0.9.1, and vllm-ascend,
    whose releases bear vLLM's numbers. vllm:25.09 of NVIDIA is a month."""
    name, _, tag = image.partition("@")[0].rpartition(":")
    folder, _, last = name.lower().rpartition("/")
    if "/" in tag or not last.startswith(("vllm", "llmd-vllm")):
        return ""
    of_vllm = "vllm-openai" in last or last == "vllm-ascend" or folder.endswith("vllm")
    match = (_TAG.fullmatch(tag) or _INSIDE.search(tag) if of_vllm else None) or _NAMED.search(tag)
    return match[1] if match else ""


def serves(image: str) -> bool:
    """Whether the image's entry point is vLLM's server.

    vllm/vllm-openai and its builds: ENTRYPOINT ["vllm", "serve"] (vllm-project/vllm docker/Dockerfile)."""
    name = image.rpartition("/")[2].partition(":")[0].partition("@")[0].lower()
    return name.startswith(("vllm-openai", "vllm_openai")) or name in ("vllm", "vllm-rocm")


_VLLM_ONLY = frozenset(
    ("enable-expert-parallel", "all2all-backend", "kv-transfer-config", "gpu-memory-utilization", "enable-eplb",
     "eplb-config", "max-num-batched-tokens", "data-parallel-size-local")
)  # fmt: skip


def _for_vllm(words: list[Text]) -> bool:
    """Arguments alone, for an image of another name: options that only vLLM's server has say whose they are."""
    if not words or not words[0].text.startswith("--"):
        return False
    names = (word.text.partition("=")[0].partition(".")[0] for word in words[:400])
    return any(name.removeprefix("--").replace("_", "-") in _VLLM_ONLY for name in names)


def size_bytes(text: str) -> int | None:
    """Docker's sizes: 16g, 16GB, 1024 (bytes)."""
    match = re.fullmatch(r"(\d{1,15})(?:\.\d+)?\s*([bkmgt]?)i?b?", text.strip().lower())
    if match is None:
        return None
    return int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]


def gpu_count(text: str) -> int | None:
    """--gpus all, --gpus 8, --gpus '"device=0,1"'; None: all, or not said."""
    cleaned = text.strip().strip("'\"")
    if cleaned.isascii() and cleaned.isdigit() and len(cleaned) < 4:
        return int(cleaned)
    device = re.search(r"device=([0-9A-Za-z:,.-]+)", cleaned)
    if device:
        return len([part for part in device[1].split(",") if part and "=" not in part])
    count = re.search(r"count=(\d{1,3})", cleaned)
    return int(count[1]) if count else None


def memlock(text: str) -> int | None:
    """ulimit's memlock: -1, soft:hard, bytes."""
    soft = text.partition(":")[0].strip()
    if soft in ("-1", "unlimited"):
        return -1
    return int(soft) if soft.isascii() and soft.isdigit() and len(soft) < 19 else None


def docker(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    """docker run | create | exec."""
    from epdoctor.launch.commands import launch

    # docker run, docker container run, docker --context X run; `docker manifest create` starts nothing.
    verb = next((n for n, word in enumerate(words[1:8], 1) if word.text in ("run", "create", "exec")), None)
    if verb is None or any(word.text.isalpha() and word.text != "container" for word in words[1:verb][-1:]):
        return None
    options, rest = _options(words[verb + 1 :])
    inside: Environment = {}
    for text in options.get("env", []):
        name, equals, _ = text.text.partition("=")
        if equals:
            inside[name] = (text.part(len(name) + 1, len(text.text)), "inline")
        elif name in environment:
            inside[name] = environment[name]
    for text in options.get("env-file", []):
        from epdoctor.launch.env_files import parse_env

        found = beside(reading, setting, text)
        if found is not None:
            inside = {
                **{k: (v, "env-file") for k, v in parse_env(found, plain_values=True).items()},
                **inside,
            }
    if not rest:
        return None
    image, command = rest[0], rest[1:]
    if words[verb].text == "exec":
        there = replace(setting, in_image=True)
        launch(reading, there, scope, command, inside, stdin)
        return None
    pod = _pod(options, image, words[0])
    there = replace(
        setting, pod=pod, in_image=True, vllm_version=image_version(image.text) or setting.vllm_version
    )
    start_in_image(reading, there, scope, image.text, options.get("entrypoint", []), command, inside)
    return None


def start_in_image(
    reading: Reading, setting: Setting, scope: Scope, image: str, entrypoint: list[Text], command: list[Text],
    environment: Environment,
) -> None:  # fmt: skip
    """The container's process: the entry point given, else the image's own, and the command's words."""
    from epdoctor.launch.arguments import add_server
    from epdoctor.launch.commands import launch

    if not any(_RUNS_TEXT.fullmatch(word.text) for word in (*entrypoint, *command)):
        entrypoint, command = _separate(reading, entrypoint), _separate(reading, command)
    words = [*entrypoint, *command]
    if entrypoint and entrypoint[0].text:
        launch(reading, setting, scope, words, environment)
    elif (serves(image) and (command or setting.pod is not None)) or _for_vllm(command):
        if len(command) > 1 and command[0].text.rpartition("/")[2] == "vllm" and command[1].text == "serve":
            command = command[2:]
        elif command and command[0].text.rpartition("/")[2] in ("bash", "sh", "python", "python3", "env"):
            # These words would be vLLM's own: the image needs --entrypoint. Read as what was meant.
            launch(reading, setting, scope, command, environment)
            return
        place = setting.pod.location if setting.pod is not None else command[0].location
        add_server(reading, setting, command, environment, command[0].location if command else place)
    else:
        launch(reading, setting, scope, command, environment)


def _separate(reading: Reading, words: list[Text]) -> list[Text]:
    """An item "--flag value" of a list is one word for vLLM, which then knows no such flag; read as it was meant."""
    found: list[Text] = []
    for word in words:
        match = _TWO_IN_ONE.match(word.text)
        if match is None:
            found.append(word)
            continue
        reading.report(
            f"{word.text[:60]} is one word of the list: vLLM knows no flag of this name",
            f'two items: "{match[1]}", "{match[2][:30]}"',
            word.location,
        )
        rest = word.part(match.start(2), len(word.text))
        found += [word.part(0, match.end(1)), *(rest.split() if " --" in rest.text else [rest])]
    return found


def _options(words: list[Text]) -> tuple[dict[str, list[Text]], list[Text]]:
    found: dict[str, list[Text]] = {}
    short = {
        "e": "env",
        "v": "volume",
        "p": "publish",
        "w": "workdir",
        "u": "user",
        "h": "hostname",
        "m": "memory",
    }
    position = 0
    while position < len(words) and words[position].text.startswith("-"):
        word = words[position]
        position += 1
        if word.text in _FLAGS:
            found.setdefault(word.text.lstrip("-"), []).append(word)
            continue
        name, equals, _ = word.text.partition("=")
        if not word.text.startswith("--") and len(word.text) > 2 and word.text[1] in short:
            found.setdefault(short[word.text[1]], []).append(word.part(2, len(word.text)))
            continue
        key = name.lstrip("-")
        key = short.get(key, key)
        if equals:
            found.setdefault(key, []).append(word.part(len(name) + 1, len(word.text)))
        elif position < len(words):
            found.setdefault(key, []).append(words[position])
            position += 1
    return found, words[position:]


def _last(options: dict[str, list[Text]], *names: str) -> str:
    return next((options[name][-1].text for name in names if name in options), "")


def _pod(options: dict[str, list[Text]], image: Text, word: Text) -> Pod:
    ulimits: Iterable[str] = (text.text for text in options.get("ulimit", []))
    locked = next((value.partition("=")[2] for value in ulimits if value.startswith("memlock")), "")
    shm = _last(options, "shm-size")
    return Pod(
        kind="docker run",
        name=_last(options, "name"),
        container=_last(options, "name"),
        location=word.location,
        gpus=gpu_count(_last(options, "gpus")),
        capabilities=tuple(text.text.upper() for text in options.get("cap-add", [])),
        privileged="privileged" in options,
        host_network=_last(options, "network", "net") == "host",
        host_ipc=_last(options, "ipc") == "host",
        shm_bytes=size_bytes(shm) if shm else None,
        shm_mounted=bool(shm),
        memlock_bytes=memlock(locked) if locked else None,
        image=image.text,
    )
