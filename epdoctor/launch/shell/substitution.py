"""$(...): what can be told without running it, and a name for what cannot."""

from __future__ import annotations

import re

from epdoctor.launch.shell.arithmetic import NotArithmetic
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.text import Builder, Script, Text, plain
from epdoctor.launch.shell.words import Words

_SEQ = re.compile(r"\s*seq\s+(?:-s\s*\S+\s+)?(\S+)(?:\s+(\S+))?(?:\s+(\S+))?\s*")
_HOSTNAMES = re.compile(r"\s*scontrol\s+show\s+hostnames?\b")
_ECHO = re.compile(r"\s*echo\s+([^|;&<>`(]*)\s*")
MAX_WORDS = 4096


def substitute(inner: str, script: Script, scope: Scope) -> Text:
    """A text that is known, or `runtime` with the command that would say it."""
    if scope.depth > 20:
        return _runtime(inner, script)
    if len(inner) < 2000:
        known = (
            _sequence(inner, script, scope) or _hostnames(inner, script, scope) or _echo(inner, script, scope)
        )
        if known is not None:
            return known
    return _runtime(inner, script)


def _runtime(inner: str, script: Script) -> Text:
    # The first stage says what is asked for; what cuts it into shape is no news.
    stage = re.split(r"\||;|&&", inner[:400], maxsplit=1)[0]
    described = " ".join(stage.split())[:60] or "a command"
    return Text(f"$({inner.strip()})", ((0, script.locate(0)),), (), described)


def _words(script: Script, scope: Scope, inner: str) -> Words:
    return Words(Script(inner, lambda at: script.locate(0), script.path), scope.deeper(), substitute)


def _sequence(inner: str, script: Script, scope: Scope) -> Text | None:
    match = _SEQ.fullmatch(inner)
    if match is None:
        return None
    words = _words(script, scope, inner)
    try:
        numbers = [_integer(words, inner, match, group) for group in (1, 2, 3) if match[group] is not None]
    except NotArithmetic:
        return None
    first, step, last = (1, 1, numbers[0]) if len(numbers) == 1 else (
        (numbers[0], 1, numbers[1]) if len(numbers) == 2 else (numbers[0], numbers[1], numbers[2])
    )  # fmt: skip
    if step == 0:
        return None
    found = range(first, last + (1 if step > 0 else -1), step)
    return plain("\n".join(str(number) for number in found[:MAX_WORDS]), script.locate(0))


def _integer(words: Words, inner: str, match: re.Match[str], group: int) -> int:
    text = words.one(match.start(group), match.end(group))
    if not text.known:
        raise NotArithmetic(text.text)
    return words.calculate(text.text, 0)


def _hostnames(inner: str, script: Script, scope: Scope) -> Text | None:
    """The job's nodes by number, where the job says how many they are."""
    if _HOSTNAMES.match(inner) is None:
        return None
    number = scope.get("SLURM_NNODES")
    if number is None or not number.known or not number.text.isdigit():
        return None
    names = [f"$SLURM_JOB_NODELIST[{index}]" for index in range(min(int(number.text), MAX_WORDS))]
    _, pipe, rest = inner.partition("|")
    if pipe:
        head = re.fullmatch(r"\s*head\s+-(?:n\s*)?(\d+)\s*", rest)
        tail = re.fullmatch(r"\s*tail\s+-n\s*\+(\d+)\s*", rest)
        line = re.fullmatch(r"\s*sed\s+-n\s+['\"]?(\d+)p['\"]?\s*", rest)
        if head:
            names = names[: int(head[1])]
        elif tail:
            names = names[max(int(tail[1]) - 1, 0) :]
        elif line:
            names = names[int(line[1]) - 1 : int(line[1])]
        elif rest.strip() not in ("sort", "xargs"):
            return None
    place = script.locate(0)
    return Text("\n".join(names), ((0, place),), (), "scontrol show hostnames", separable=True)


def _echo(inner: str, script: Script, scope: Scope) -> Text | None:
    match = _ECHO.fullmatch(inner)
    if match is None:
        return None
    words = _words(script, scope, inner)
    position, end = match.start(1), match.end(1)
    builder = Builder()
    fields: list[Text] = []
    # Words of `echo a "$b"` that hold no quotes with blanks inside: else it is left to run time.
    quotes = any(char in inner for char in "'\"")
    if quotes and (inner.count('"') != 2 or not re.fullmatch(r'"[^"]*"', match[1].strip())):
        return None
    for piece in re.finditer(r'"[^"]*"|\S+', inner[position:end]):
        fields += words.fields(position + piece.start(), position + piece.end())
    if any(not text.known for text in fields) or (fields and fields[0].text.startswith("-")):
        return None
    for number, text in enumerate(fields):
        if number:
            builder.add(" ", text.location)
        builder.add_text(text)
    return builder.build(script.locate(0))
