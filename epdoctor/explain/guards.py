"""What a text is before its words are weighed: a question, a program's output, a healthy value. Pure.

Likeness of words alone names a cause only for a person's own words about a fault. Everything here is bounded."""

from __future__ import annotations

import re

_ASKS = re.compile(
    r"(?i)^\W{0,3}(how|what|which|where|who|can|could|should|may|is|are|do|does|has|have|hello|hi|please|list|show|give|tell|write|explain|describe|compare|summari[sz]e)\b|\?\W{0,3}$"
)
_SYMPTOM = re.compile(
    r"(?i)error|fail|fault|exception|abort|crash|cannot|\bcan ?not|n['\u2019`]t\b|\b(do|does|did|is|are|was|ca|could|wo|would|has|have)nt\b|\bnot\b|\bno\b|never"
    r"|unable|denied|refus|time[sd]? ?-?out"
    r"|invalid|missing|mismatch|differ|hang|hung|stuck|kill|dead|\bdie[sd]?\b|dying|lost|los[et]|broke|break|corrupt|exceed|exhaust|too "
    r"|slow|wrong|bad\b|drop|down\b|unknown|undefined|un(available|supported|expected|reachable)|fall|fell|gone|conflict"
    r"|collision|forg[eo]t|leak|reset|block|reject|garbage|oom\b|out of|instead|without|only|xid|stale|empty|old\b|full\b|already"
)
_ASKS_HOW = re.compile(r"(?i)^\W{0,3}(how|what|whats|which)\b[^?]{0,400}\?")
_FAULT = re.compile(
    r"(?i)error|fail|fault|exception|abort|crash|cannot|\bcan ?not|\b(wo|ca|does|did|is)n['\u2019`]?t\b|unable|denied|refus|time[sd]? ?-?out"
    r"|invalid|missing|mismatch|hang|hung|stuck|kill|dead|\bdie[sd]?\b|lost|broke|corrupt|slow|wrong|garbage|oom\b|out of|xid"
)
"""The clearer ones: "how many ...? not deployed yet" tells of none."""
_CALM = re.compile(
    r"(?i)\bnothing (is |was )?(broken?|wrong|failed|crashed|urgent)|\beverything (runs|works|is (fine|ok|good|green))|\ball (is )?(good|fine|green)\b"
    r"|\bno (problem|issue)s?\b|\bjust (asking|planning|curious|wondering)"
)
_PROGRAM = re.compile(
    r"(?m)^\W{0,3}[\w.]{0,80}(Error|Exception|Warning)(:|\W{0,3}$)"
    r"|^\W{0,3}(INFO|WARN(ING)?|ERROR|DEBUG)\b|\b(NCCL|NVSHMEM|NIXL|UCX) +(INFO|WARN|ERROR|DEBUG|DIAG|TRACE)\b|\bINFO\b.{0,40}\["
    r"|^\([A-Z]\w{2,60} (rank=\d{1,5} )?pid=\d{1,10}\) |\b(WARNING|ERROR|DEBUG|CRITICAL)\b.{0,40}\[\w{1,60}\.py:\d{1,6}\]"
    r"|^usage: |^\w[\w .\-]{0,40}: error: |^\[ {0,6}\d{1,8}\.\d{1,9}\] |^\[\d{10}\.\d{1,9}\] |\bkernel: "
    r"|\b[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.\d\b|^[IWEF]\d{4} \d\d:\d\d|^\d{4}-\d\d-\d\d[ T]\d\d:\d\d"
    r"|^(Successfully (installed|built)|Requirement already satisfied|Collecting |Installing collected) ?"
    r"|^\[\w{2,12}\] (Rank|rank) \d"
)
_COLLECTOR = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]{8,20}(Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] ")
"""What a container's log collector puts in front of every line, whatever it is."""
_STRUCTURED = re.compile(
    r"^\s{0,40}[\w./\-\[\]() ]{1,60}\s{0,60}[=:]\s{0,4}\S|^[$#>] |\(-\w\) |\S(\t| {3,})\S|^[|+\-]|^\s{0,40}[\w.\-/]{1,60}=\S"
)
_SETTING = re.compile(r"^\s{0,40}(export )?[\w.\-/]{3,80} ?= ?\S{1,200}$")
_FAULT_COUNT = re.compile(
    r"(?i)^[\w \t\-/().\[\]#]{0,80}(error|fail|exceed|uncorr|correct|pending|slowdown|retired|drop|down|discard|pressure|blacklist"
    r"|violation|overrun|invalid)[\w \t\-/()]{0,40}(\s?:\s{1,20}|\s=\s{1,20}|[:.]*\.{3,80}|\t|\s{3,60})"
    r"(0|0x0+|no|none|n/a|false|pass|not active|inactive|disabled|0 ok)\W{0,3}$"
)
_ZERO = re.compile(
    r"(?i)\b[\w.]{0,60}(err|error|errors|down|downed|drops?|dropped|discards?|discarded|timeouts?|failures?|failed|retries)(_\w{1,30})?"
    r"\s{0,3}[:= ]\s{0,3}0\b(?![.,]\d)|\bno (errors?|failures?|faults?|problems?|issues?)( (found|detected|reported|seen))?\b"
)
"""The same within a line."""
_TELLS = re.compile(
    r"^(we|our|my|i|im|ive|me|us|but|still|now|again|fine|ok|works|worked|same|after|since|why"
    r"|everything|nothing|never|only|just|other|another|one|both|every|when|until|then|says|say|said"
    r"|gives|got|get|goes|does|did|want|wants|need|tried|thats|its|cant|wont|doesnt|isnt|dont|didnt|so"
    r"|because|bc|w|pls|thx|ours|they|yesterday|today|before|although|even|somehow|suddenly|sometimes"
    r"|always|old|new|which|what|how|should|am|have|has|had|without|too|there|here)$"
)
"""Words that people use when they tell something, and programs hardly ever print."""
_TOLD_WORDS = 2
_WORD = re.compile(r"[a-z'\u2019]{1,30}")
_LETTERS = re.compile(r"[A-Za-z]{3}")
_ONLY_NAME = re.compile(r"^\W{0,3}[\w.]{0,80}(Error|Exception|Warning|Interrupt|Exit)\W{0,3}$")


def asks_only(text: str) -> bool:
    """A question that tells of no fault: nothing is wrong yet, so no cause is named."""
    plain = text.strip()
    if "\n" in plain:
        return False
    if "?" in plain and _CALM.search(plain[:2000]):
        return True
    if _ASKS_HOW.search(plain[:600]):
        return not _FAULT.search(plain[:2000])
    return bool(_ASKS.search(plain[:600])) and not _SYMPTOM.search(plain[:2000])


def is_program_output(text: str) -> bool:
    """Printed by a program rather than written by a person: a log line, a table, settings, an exception."""
    lines = [line for line in text[:20_000].splitlines() if line.strip()]
    if any(is_log_line(line) for line in lines):
        return True
    if len(lines) == 1:
        return bool(_SETTING.match(lines[0]))
    return 2 * sum(bool(_STRUCTURED.search(line[:400])) for line in lines) >= len(lines)


def is_log_line(line: str) -> bool:
    """One line with the head of a log, a kernel message or an exception."""
    return bool(_PROGRAM.search(_COLLECTOR.sub("", line[:400])))


def tells_of_trouble(text: str) -> bool:
    """Whether any word of a fault is left once the counters that stand at zero are out."""
    return bool(_SYMPTOM.search(without_healthy(text)[:8000]))


def is_healthy(line: str) -> bool:
    """A counter or state named after a fault that says there is none: "Uncorrectable Error : 0"."""
    return bool(_FAULT_COUNT.match(line[:400]))


def without_healthy(text: str) -> str:
    """The text without the lines that say a fault is absent."""
    lines = (line for line in text.splitlines() if not is_healthy(line.rstrip()))
    return _ZERO.sub(" ", "\n".join(lines))


def is_told(text: str) -> bool:
    """A person's account of a fault, in sentences: a long one is never covered in full by what a cause knows."""
    if is_program_output(text) or not tells_of_trouble(text):
        return False
    words = {word.replace("'", "").replace("\u2019", "") for word in _WORD.findall(text[:2000].lower())}
    return sum(_TELLS.match(word) is not None for word in words) >= _TOLD_WORDS


def has_words(text: str) -> bool:
    """Anything to compare: at least one word of three letters."""
    return _LETTERS.search(text) is not None


def says_all_is_well(text: str) -> bool:
    """Faults are named only to say that there are none."""
    return _ZERO.search(text) is not None and not tells_of_trouble(text)


def is_bare_name(text: str) -> bool:
    """An exception's name and nothing more: every program raises it."""
    return bool(_ONLY_NAME.match(text.strip()[:200]))
