"""How examples look when a tired person types or pastes them: a word lost, a typo, a broken line, a prefix."""

from __future__ import annotations

import random
from collections.abc import Iterator

from epdoctor.explain.causes import load_causes

KINDS = ("dropped word", "typo", "wrapped line", "timestamp prefix")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PREFIXES = (
    "2026-11-21T10:02:02.123456Z stderr F ",
    "Nov 21 10:02:02 gpu03 vllm[4921]: ",
    "[rank3]:[W1121 10:02:02.120 ProcessGroup.cpp:88] ",
    "(Worker_TP3 pid=4921) ERROR 11-21 10:02:02 [worker.py:88] ",
)


def variant(text: str, kind: str, rng: random.Random) -> str:
    """One variant of a line."""
    words = text.split()
    long = [i for i, word in enumerate(words) if sum(c.isalpha() for c in word) >= 4] or list(
        range(len(words))
    )
    if kind == "dropped word" and len(words) > 3:
        del words[rng.choice(long)]
        return " ".join(words)
    if kind == "typo":
        index = rng.choice(long)
        word = words[index]
        at = rng.randrange(max(1, len(word) - 1))
        how = rng.randrange(3)
        if how == 0:
            words[index] = word[:at] + word[at + 1 :]
        elif how == 1:
            words[index] = word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
        else:
            words[index] = word[:at] + rng.choice(_LETTERS) + word[at + 1 :]
        return " ".join(words)
    if kind == "wrapped line" and len(words) > 2:
        at = rng.randrange(1, len(words))
        return " ".join(words[:at]) + "\n" + " ".join(words[at:])
    return rng.choice(_PREFIXES) + text


def variants(count: int, seed: int) -> Iterator[tuple[str, frozenset[str], str]]:
    """(text, causes that are right, kind). Right is every cause whose own signature has this example."""
    catalogue = load_causes()
    owners: dict[str, set[str]] = {}
    for cause_id in catalogue:
        for signature in catalogue[cause_id].signatures:
            if signature.strength == "strong":
                owners.setdefault(signature.example, {cause_id}).add(cause_id)
    # Words that hardly say anything alone ("EMFILE") cannot lose one.
    examples = sorted(text for text in owners if len(text.split()) >= 4)
    rng = random.Random(seed)
    for number in range(count):
        text = rng.choice(examples)
        kind = KINDS[number % len(KINDS)]
        yield variant(text, kind, rng), frozenset(owners[text]), kind
