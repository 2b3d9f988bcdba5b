"""Which nodes a waiver is for: names, gpu[01-04], gpu*, ~regular expression, !not-this-one, all.

The words are those of --limit (Ansible's host patterns and ours), without groups: what is judged may be a
recording, which knows no inventory.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from functools import cache

from epdoctor.nodenames import NodeNamesError, expand, split_terms

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]*\Z")


@cache
def node_matcher(pattern: str) -> Callable[[str], bool]:
    """A test for node names. Raises NodeNamesError for a pattern that is none."""
    wanted: list[Callable[[str], bool]] = []
    unwanted: list[Callable[[str], bool]] = []
    for term in split_terms(pattern, ","):
        if term.startswith("&"):
            raise NodeNamesError(f'"{term[:60]}": & is for groups, which a waiver does not know')
        (unwanted if term.startswith("!") else wanted).append(_matcher(term.lstrip("!")))
    if not wanted and not unwanted:
        raise NodeNamesError("no node named")

    def fits(name: str) -> bool:
        return (not wanted or any(test(name) for test in wanted)) and not any(test(name) for test in unwanted)

    return fits


def _matcher(term: str) -> Callable[[str], bool]:
    if term in ("all", "*"):
        return lambda name: True
    if term.startswith("~"):
        import re2  # linear time: the pattern and the names are a stranger's

        options = re2.Options()
        options.log_errors = False
        try:
            expression = re2.compile(term[1:], options)
        except re2.error as error:
            why = error.args[0] if error.args else ""
            why = why.decode("utf-8", "replace") if isinstance(why, bytes) else why
            raise NodeNamesError(f'"{term[:60]}" is not a regular expression ({why})') from None
        return lambda name: expression.match(name) is not None
    if any(sign in term for sign in "*?"):
        if not re.fullmatch(r"[A-Za-z0-9._:*?-]+", term):
            raise NodeNamesError(f'"{term[:60]}": brackets and wildcards do not go together')
        expression = re.compile(fnmatch.translate(term))
        return lambda name: len(name) < 256 and expression.match(name) is not None
    names = frozenset(expand(term))
    for name in names:
        if not _PLAIN.match(name):
            raise NodeNamesError(f'"{name[:60]}" is not a node name')
    return names.__contains__
