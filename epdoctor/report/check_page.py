"""One check's page as Markdown: the generated docs and `epdoctor explain CHECK-ID` say the same."""

from __future__ import annotations

from epdoctor.model import Check


def check_page(check: Check) -> str:
    """What it checks, why, when it applies, how to see it by hand, the fix, how to verify, sources."""
    parts = [
        f"# {check.title}",
        f"`{check.id}` · {_severity(check)} · {check.scope} check · since {check.since}",
    ]
    parts += ["## Why it matters for expert parallelism", check.why]
    parts += ["## Applies", _applies(check)]
    parts += ["## See it by hand", _block(check.by_hand)]
    fix = check.fix
    if fix.now or fix.permanent or fix.workaround:
        parts.append("## Fix")
        if fix.now:
            parts += ["Now:", _block("\n".join(fix.now))]
        if fix.permanent:
            parts += ["For good:", _block("\n".join(fix.permanent))]
        if fix.workaround:
            parts += ["What serves meanwhile:", _block(fix.workaround)]
        parts.append(f"Action: {fix.action.value}. Disruption: {fix.disruption.value}.")
    parts += ["## Verify", _block(f"epdoctor check --select {check.id}")]
    if check.causes:
        parts += ["## Errors it explains", "\n".join(f"- `{cause}`" for cause in check.causes)]
    parts += ["## Sources", "\n".join(f"- {reference}" for reference in check.references)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _severity(check: Check) -> str:
    base = check.severity["default"].value
    others: dict[str, list[str]] = {}
    for name, level in check.severity.items():
        if name != "default" and level.value != base:
            others.setdefault(level.value, []).append(name)
    return base + "".join(f"; {level} for {', '.join(names)}" for level, names in others.items())


def _applies(check: Check) -> str:
    where = {
        True: "Across nodes only.",
        False: "On a single node only.",
        None: "On one node and across nodes.",
    }
    backends = f"Back ends: {', '.join(check.backends)}." if check.backends else "All back ends."
    needs = f" Needs: {', '.join(check.needs)}; skipped where one is absent." if check.needs else ""
    return f"{where[check.multinode]} {backends}{needs}"


def _block(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"
