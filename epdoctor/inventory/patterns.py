"""--limit: Ansible's host patterns (docs.ansible.com, "Patterns: targeting hosts and groups"), and ours.

Ansible evaluates them (`ansible-inventory --limit`); this module only rewrites our bracket lists into what it
knows, and answers by itself where an inventory is a plain list and the pattern a plain list of names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from epdoctor.exceptions import InventoryError
from epdoctor.nodenames import NodeNamesError, expand, split_terms

# `gpu[0]`, `gpu[-1]` and `gpu[0:3]` are Ansible's subscripts; `[01-07]` and `[1,3]` are ours (Ansible removed
# [x-y], and splits at every comma).
_OURS = re.compile(r"\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\]")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")


def _is_ours(term: str) -> bool:
    if term.startswith("~") or any(char in term for char in "*?"):
        return False
    return any("-" in m.group() or "," in m.group() for m in _OURS.finditer(term))


def for_ansible(limit: str) -> str:
    """The same pattern in Ansible's own syntax. Raises InventoryError for a bracket that is wrong."""
    limit = limit.strip()
    if "[" not in limit or limit.startswith(("~", "!~", "&~")):
        return limit
    try:
        terms = split_terms(limit)
        if len(terms) == 1:
            terms = split_terms(limit, ":")
        if not any(_is_ours(term.lstrip("!&")) for term in terms):
            return limit
        out: list[str] = []
        for term in terms:
            sign, name = (term[0], term[1:]) if term[0] in "!&" else ("", term)
            if not _is_ours(name):
                out.append(term)
            elif sign == "&":
                # "&a,&b" would ask for nodes that are both: one regular expression asks for either.
                out.append("&~(?:" + "|".join(re.escape(one) for one in expand(name)) + ")$")
            else:
                out += [sign + one for one in expand(name)]
    except NodeNamesError as error:
        raise InventoryError(f'--limit "{limit}": {error}') from None
    return ",".join(out)


def limit_plain(names: Sequence[str], limit: str) -> list[str] | None:
    """The names that a limit without groups, wildcards or operators leaves; None: ask Ansible.

    Raises InventoryError for a name that is not in the list.
    """
    terms = for_ansible(limit).split(",")
    wanted = [term.strip() for term in terms if term.strip()]
    if not wanted or not all(_PLAIN.match(term) for term in wanted) or {"all", "ungrouped"} & set(wanted):
        return None
    known = set(names)
    for term in wanted:
        if term not in known:
            raise InventoryError(f'--limit "{limit}": no node is called {term}')
    return [name for name in names if name in set(wanted)]
