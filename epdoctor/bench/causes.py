"""Causes that a layer names by itself, from a step and its errno, with their titles."""

from __future__ import annotations

from collections.abc import Iterable


def named(ids: Iterable[str], limit: int = 3) -> list[tuple[str, str]]:
    """(id, title) of these causes, each once, in order. Raises KeyError for one that is not in checks/errors."""
    from epdoctor.explain.causes import load_causes

    known = load_causes()
    return [(cause, known[cause].title) for cause in dict.fromkeys(ids)][:limit]
