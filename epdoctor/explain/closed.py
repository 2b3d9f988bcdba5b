"""Accounts of trouble that is over: a post-mortem, a closed ticket, a cause its teller has found and mended. Pure.

The words of the fault are all there, and nothing is at fault any more. Only short prose is looked at; what a
program printed, and what came back after it was mended, stays a report."""

from __future__ import annotations

import re

from epdoctor.explain.guards import is_log_line

_SIZE = 1500
_OVER = re.compile(
    r"(?i)\bclos(ing|ed) (the|this|my) (ticket|issue|incident|thread|bug)\b|\bclosing as (completed|fixed|done|resolved)\b|\bcan be closed\b"
    r"|\bresolution: ?(fixed|done|resolved|solved|workaround)\b|\bstatus: ?(closed|resolved|done|fixed)\b|\bcomment \(closing\)"
    r"|\bsince then (there (is|was|were) )?(no|not a|zero) (\w{1,20} ){0,2}(error|failure|alert|incident|crash|drop|problem|issue|retr)"
    r"|\bno (more )?(errors?|failures?|crash(es)?|problems?|issues?|drops?)( \w{1,12}){0,3} (since (then|that|the fix)|in|for) (\d{1,4}|a|the last|two|three)\b"
    r"|\b(all|both|\d{1,5}|jobs|pods|nodes|it|everything)( \w{1,12}){0,3} (fine|good|green|stable|ready|clean|healthy|quiet) (since\b|for (a|\d{1,4}|two|three|weeks|days))"
    r"|\b(that|this|it|which) (was|is|got|has been) (solved|fixed|mended|cured|resolved) (with|by|after|now)\b"
    r"|\bfound it: |\b(that|this|which) (fixed|solved|cured) (it|the|our)\b(?! (for|until|only))|(?<!\w)(fixes|fixed|solved) it\W{0,3}$"
    r"|\b(solved|fixed) it (myself|ourselves)\b|^\W{0,3}(nvm|never ?mind)\b|\b(is|are) gone\b.{0,120}\bworks?\b"
    r"|\b(post-?mortem|root cause was)\b.{0,600}\b(fixed|solved|resolved|mended) (by|with|in|through|via)\b"
    r"|\b(outage|incident|alert|problem|issue) (from |of )?(\w{1,12} ){0,3}(is|was|has been) (explained|over|resolved|fixed|solved|mitigated)\b"
    r"|\b(does|do|did) ?n(o|['\u2019])t (happen|occur|appear|show up) any ?more\b|\b(all|both nodes|nodes|everything) (are |is )?back\b(?! to)"
    r"|\bback in the pool\b"
)
"""Said of what is over."""
_BACK = re.compile(
    r"(?i)\b(but|however|still|except|although|though|until|again|comes? back|came back|returns?|returned|reappear\w{0,3}|recurs?|recurring|reopen\w{0,3}"
    r"|every (night|day|time|reboot|restart|boot|week|morning)|each (time|reboot|restart|boot)|not (sure|really|fixed|solved|closed)|how (do|can|to)|why|what|prevent|avoid|\?"
    r"|permanent(ly)?|now (it|we|the|all|every|another|one|nccl|vllm|nvshmem|deepep|get)|instead|other nodes?|the (same|other)|help)\b|n['\u2019]t\b"
)
"""It is not, or more is asked."""
_OWN = re.compile(
    r"(?i)[#(;,] ?(my |a |just a )?typo\b|\bmy (own )?(typo|mistake|bug|fault)\b|\bletter \w instead of\b|\bstupid me\b|\bmy (own )?(cell|script|notebook) had\b"
)
"""Who tells it has found the fault in what he typed."""


def is_over(text: str) -> bool:
    """Whether a person tells of a fault that is mended, and of no other."""
    shown = text.strip()
    if not 0 < len(shown) <= _SIZE:
        return False
    found = _OVER.search(shown) or _OWN.search(shown)
    if found is None or any(is_log_line(line) for line in shown.splitlines()):
        return False
    return _BACK.search(shown, found.end()) is None
