"""The check that --baseline adds to a run. It has no rule: it is judged against a file."""

from __future__ import annotations

from epdoctor.model import Action, Check, Fix, Severity

CHECK_ID = "drift.baseline"


def check_of(path: str = "FILE") -> Check:
    """`path`: the baseline's."""
    return Check(
        id=CHECK_ID,
        title="The node is as it was when the baseline was saved",
        severity={"default": Severity.WARNING},
        scope="node",
        rule="",
        params={},
        why="What worked then and does not now is most often among what has moved since.",
        by_hand=f"less {path}",
        fix=Fix(
            now=("epdoctor diff --last-good   # which findings came with it",),
            action=Action.NONE,
        ),
        references=("docs/diff.md",),
        tags=("drift",),
    )
