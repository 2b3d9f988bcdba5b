"""Changelogs, release notes, commits and lists of merged changes: they say what was wrong, and nothing is. Pure."""

from __future__ import annotations

import re

from epdoctor.explain.guards import is_log_line

# Keep a changelog, GNU NEWS, GitHub releases, Debian: a version or a heading, then what was done.
_RELEASE_HEADING = re.compile(
    r"(?i)^\s{0,3}(release |version )?(#{1,4}\s{1,4}|\*\*"
    r"|=+\s)?(\[?v?\d{1,4}\.\d{1,4}(\.\w{1,12}){0,3}\]?(-(rc)?\d{1,3})?(\s{0,3}[\-\u2013(:].{0,80}| highlights)?(\*\*)?|news\b.{0,40}"
    r"|change ?log\b.{0,60}|changes (in|since) .{1,40}|release notes?\b.{0,60}|what(['\u2019]s| is) (new|changed|fixed).{0,40}|[\w .]{2,40}\brelease notes?\W{0,4}"
    r"|(bug ?)?fix(es|ed)?( issues)?|added|changed|removed|deprecated|security|known issues|breaking changes|features|improvements"
    r"|key features.{0,40}|limitations|compatibility|misc(ellaneous)?|docs|documentation|other)\W{0,6}$"
)
_VERSION_HEADING = re.compile(
    r"(?i)^\s{0,3}(#{1,4} )?(release |version )?\[?v?\d{1,4}\.\d{1,4}(\.\w{1,12}){0,3}\]?(-?rc\d{1,3})?( ?[\-\u2013(] ?[\d\-/. ]{6,12}\)?)?:?\s{0,3}$"
)
_CHANGE = re.compile(
    r"(?i)^\s{0,12}([\-*+\u2022]|\d{1,3}[.)])\s{1,4}(#\d{1,7} ?)?((\[\w[\w /\-]{0,20}\]){1,4}\s?|\*\*[\w /()\-]{1,30}:?\*\*:?\s?"
    r"|[\w/+\-]{2,16}: ?)?(\([\w /\-]{1,20}\) ?)?"
    r"(fix(e[sd])?|add(ed|s)?|remove[sd]?|improve[sd]?|drop(ped|s)?|bump(ed|s)?|update[sd]?|rename[sd]?|deprecate[sd]?|support(ed|s)?"
    r"|docs?|feat(ure)?|chore|ci|test(s|ed)?|refactor(ed)?|perf|build|known issue|introduce[sd]?|enable[sd]?|allow(ed|s)?|revert(ed)?"
    r"|clearer|better|more|new|no longer|do not|don't|avoid(ed|s)?|print(s|ed)?|fallback|handle[sd]?|clarif\w{1,5}|document(ed|s)?"
    r"|resolve[sd]?|correct(ed|s)?|enhance[sd]?|replace[sd]?|move[sd]?|raise[sd]?|report(s|ed)?|explain(s|ed)?)\b"
)
_PLAIN_CHANGE = re.compile(
    r"^\s{1,12}(Fix(e[sd])?|Add(ed|s)?|Remove[sd]?|Improve[sd]?|Update[sd]?|Support|Enable[sd]?|Avoid|Allow|Print|Handle|Reduce[sd]?|Bump"
    r"|Drop|Rename[sd]?) [a-zA-Z]"
)
"""Without a mark in front, as in NCCL's release notes: below a heading only."""
_NO_LONGER = re.compile(
    r"(?i)^\s{0,12}[\-*+\u2022]\s.{0,200}\b(no longer|is now|are now|now returns?|instead of|race (that|which))\b"
)
_NEWS = re.compile(
    r"(?i)^\W{0,6}(change ?log|changes (in|since) |release notes|news\b|what(['\u2019]s| is) (new|changed|fixed)|.{1,40} release notes)"
)
_ONE_CHANGE = re.compile(
    r"(?i)^\W{0,6}((release notes?|change ?log)\b.{0,30}[:\u2013\-] ?|(in|since) v?\d{1,3}\.\d{1,3}(\.\d{1,4})?[:,] )"
    r"(fixed|fixes|added|adds|removed|improved|resolved) (an?|the|several|some|for|support)\b"
)
_ONE_RELEASE = re.compile(r"(?i)^\W{0,4}(change ?log|release( notes?)?) v?\d{1,4}\.\d{1,4}(\.\w{1,8})?:")
_BULLET = re.compile(r"^\s{0,12}([\-*+\u2022]|\d{1,3}[.)])\s{1,4}\S")
_CONVENTIONAL = re.compile(
    r"^\s{0,8}(?i:fix|feat|docs|test|tests|chore|refactor|ci|build|perf|style|revert|breaking|helm)(\([\w ,/.\-]{1,40}\))?!?: \S"
)
_TITLE = re.compile(r"^\W{0,4}(#\d{2,7}:? )?(\[\w[\w /\-]{0,20}\] ?){1,4} ?[A-Z][a-z]\S* \S")
"""A merged change by its title: "#4412 [Bugfix] Handle ..."."""
_SHORT_HASH = re.compile(r"^\W{0,4}[0-9a-f]{7,12} (\([^)]{1,80}\) )?\S")
_COMMIT = re.compile(
    r"^(commit [0-9a-f]{4,40}( \(.{1,120}\))?\s{0,3}$|(commit|cherry[- ]pick(ed)?) [0-9a-f]{7,40}:? \S|Author: .{1,80}<|From [0-9a-f]{40} )"
)
_DIFF = re.compile(r"^(diff --git |@@ -\d{1,7}(,\d{1,7})? \+\d|Index: \S|--- a/|\+\+\+ b/)")
HEADING = re.compile(r"^#{1,4} \w")
QUOTED = re.compile(
    r"`[^`\n]{3,300}`|\"[^\"\n]{3,300}\"|\u201c[^\u201d\n]{3,300}\u201d|(?<![A-Za-z])'[^'\n]{6,300}'(?![A-Za-z])"
)
PERSON = re.compile(r"(?i)\b(i|we|my|our|us|me|you)\b")


def begins_change(line: str) -> bool:
    """The head of a commit or of a diff."""
    return bool(_COMMIT.match(line[:200]) or _DIFF.match(line[:200]))


def is_entry(line: str) -> bool:
    """One entry of a list of changes, whatever it quotes."""
    return bool(_CHANGE.match(line))


def _is_change(line: str) -> bool:
    return bool(_CHANGE.match(line[:300]) or _NO_LONGER.match(line[:300]))


def is_changelog(lines: list[str]) -> bool:
    """Entries of changes under a heading, or three of them without one, that outweigh the lines of a run."""
    headings = sum(bool(_RELEASE_HEADING.match(line[:200])) for line in lines)
    changes = sum(_is_change(line) for line in lines)
    bullets = sum(bool(_BULLET.match(line[:40])) for line in lines)
    runs = sum(is_log_line(line) for line in lines)
    # A version and the kind of change above them: whatever words the entries begin with.
    if bullets and (headings >= 2 or _NEWS.match(lines[0][:200])):
        changes = bullets
    if headings and not bullets:
        changes = sum(bool(_PLAIN_CHANGE.match(line[:80])) for line in lines)
    if not changes or 2 * changes < bullets:
        return False
    # A paragraph under a bullet goes over several lines in long release notes.
    return (headings > 0 or changes >= 3) and 2 * (headings + changes) + bullets > runs * 2


def is_bare_changelog(lines: list[str]) -> bool:
    """Nothing but a release's heading and its entries, told by nobody: "no longer crashes" complains of nothing."""
    if len(lines) <= 3 and (_ONE_CHANGE.match(lines[0][:300]) or _ONE_RELEASE.match(lines[0][:60])):
        return True
    heads = sum(bool(_RELEASE_HEADING.match(line[:200]) or HEADING.match(line)) for line in lines)
    bullets = [line for line in lines if _BULLET.match(line[:40])]
    changes = sum(_is_change(line) for line in bullets)
    if heads + len(bullets) != len(lines) or any(PERSON.search(QUOTED.sub(" ", line)) for line in lines):
        return False
    # Below a version alone any words will do: "- mooncake: log the GID index".
    if heads == 1 and len(bullets) >= 2 and _VERSION_HEADING.match(lines[0][:80]):
        return not any(is_log_line(line) for line in bullets)
    return bool(heads) and 3 * changes >= 2 * max(3, len(bullets))


def is_history(lines: list[str]) -> bool:
    """Commits, by their head or by their titles."""
    if any(begins_change(line) for line in lines[:12]):
        return True
    named = sum(bool(_CONVENTIONAL.match(line[:200]) or _SHORT_HASH.match(line[:200])) for line in lines)
    if named == len(lines) or (named >= 2 and 2 * named > len(lines)):
        return True
    return len(lines) >= 2 and all(_TITLE.match(line[:200]) and not is_log_line(line) for line in lines)
