"""A plan as text for people: layout, reasons, memory, in 80 columns. Pure."""

from __future__ import annotations

import textwrap

from epdoctor.launch.memory import GIB, Budget
from epdoctor.plan.choose import Group, Request

WIDTH = 80


def _wrapped(label: str, text: str, column: int) -> list[str]:
    inside = textwrap.wrap(text, WIDTH - column - 2) or [""]
    head = f"  {label:<{column - 2}}  {inside[0]}"
    return [head, *(" " * (column + 2) + line for line in inside[1:])]


def memory_table(budget: Budget, windowed: bool) -> list[str]:
    """Each term of a GPU's memory, the sum, and what is left."""
    rows = [f"  {term.gib:6.1f}  {term.name}: {term.how}" for term in budget.terms]
    rows.append(f"  {budget.needed_bytes / GIB:6.1f}  of {budget.usable_bytes / GIB:.1f} usable: "
                f"{budget.utilisation:g} (vLLM's default) of {budget.gpu_bytes / GIB:.1f} GiB")  # fmt: skip
    left = budget.left_bytes / GIB
    if left <= 0:
        rows.append(f"  {-left:6.1f}  too much: it does not fit")
    else:
        room = " (tight)" if budget.tight else ""
        tokens = f": at most {_thousands(budget.cache_tokens)} tokens a rank" if not windowed else ""
        rows.append(f"  {left:6.1f}  left for KV cache, activations and CUDA graphs{room}{tokens}")
    return [line for row in rows for line in textwrap.wrap(row, WIDTH, subsequent_indent=" " * 10)]


def _thousands(number: int) -> str:
    return f"{number / 1000:.0f} thousand" if number >= 10_000 else str(number)


def group_lines(request: Request, group: Group) -> list[str]:
    """Head line, reasons, memory."""
    number, node = len(group.nodes), group.nodes[0]
    role = "" if group.role == "serve" else f"{group.role}: "
    where = f"{number} node{'s' if number > 1 else ''} x {node.gpus} {node.gpu}"
    lines = textwrap.wrap(
        f"{role}{request.model} on {where}: EP {group.ranks} = TP {group.tensor} x DP {group.data}, {group.backend}",
        WIDTH,
        subsequent_indent="  ",
    )
    lines += ["", "why"]
    column = max(len(what) for what, _ in group.reasons) + 2
    for what, why in group.reasons:
        lines += _wrapped(what, why, column)
    lines += ["", "memory of a GPU, GiB", *memory_table(group.budget, group.windowed)]
    if group.not_counted:
        lines.append(f"          not counted: {group.not_counted}")
    return lines
