"""One cause's page as Markdown: the generated docs and `epdoctor explain CAUSE-ID` say the same."""

from __future__ import annotations

from epdoctor.explain.causes import Cause


def cause_page(cause: Cause) -> str:
    """What it is, how programs say it, the fix, how to tell it from its neighbours, sources."""
    parts = [
        f"# {cause.title}",
        f"`{cause.id}` · {cause.layer} · action: {cause.action} · since {cause.since}",
        cause.meaning,
    ]
    if cause.silent:
        parts.append("No program says so: only a check finds it.")
    own = [s for s in cause.signatures if s.strength in ("strong", "weak")]
    if own:
        rows = ["| program | version | line | names it |", "| --- | --- | --- | --- |"]
        for s in own:
            alone = "by itself" if s.strength == "strong" else "with others"
            rows.append(f"| {_cell(s.program)} | {_cell(s.version)} | `{_cell(s.example)}` | {alone} |")
        parts += ["## How programs say it", "\n".join(rows)]
    contexts = [s for s in cause.signatures if s.strength in ("context", "deciding")]
    if contexts:
        parts += ["## What around it speaks for it", "\n".join(f"- `{_cell(s.example)}`" for s in contexts)]
    excluding = [s for s in cause.signatures if s.strength == "excluding"]
    if excluding:
        parts += [
            "## What around it speaks against it",
            "\n".join(f"- `{_cell(s.example)}`" for s in excluding),
        ]
    if cause.look_alikes:
        parts += ["## What it is not", "\n".join(f"- `{_cell(line)}`" for line in cause.look_alikes)]
    if cause.consequences:
        parts += ["## What follows from it", "\n".join(f"- `{_cell(regex)}`" for regex in cause.consequences)]
    parts.append("## Fix")
    if cause.fix_now:
        parts += ["Now:", _block("\n".join(cause.fix_now))]
    if cause.fix_permanent:
        parts += ["For good:", _block("\n".join(cause.fix_permanent))]
    if cause.workaround:
        parts += ["What serves meanwhile:", _block(cause.workaround)]
    if cause.versions:
        parts += ["## Versions", cause.versions]
    if cause.tell_apart:
        parts += ["## Tell it apart", cause.tell_apart]
    if cause.checks:
        parts += ["## Verify", _block(f"epdoctor check --select {','.join(cause.checks)}")]
    parts += ["## Sources", "\n".join(f"- {reference}" for reference in cause.references)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


def _block(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"
