"""Texts about errors rather than from a run: changelogs, commits, reviews, help, tests that pass, source. Pure.

They quote the words of a fault, and nothing is at fault. What kind a text is, its head says; which of its lines
are such is asked of single lines, so that a log pasted into a changelog keeps its lines."""

from __future__ import annotations

import re

from epdoctor.explain.changes import (
    HEADING,
    PERSON,
    QUOTED,
    begins_change,
    is_bare_changelog,
    is_changelog,
    is_entry,
    is_history,
)
from epdoctor.explain.guards import is_log_line, names_fault

_HEAD_CHARACTERS = 16_000
_LONG = 40
_FEW_WORDS = 12
_SINGLE = 700
"""A longer paragraph is not searched for the marks of talk."""

# Code review and its platforms.
_REVIEW = re.compile(
    r"(?i)\bnit(pick)?s?\b\s{0,2}[:,]|^\W{0,3}nit\b|\bLGTM\b|\bsuggested change|\breview (on|of|for) (PR|MR|#|pull|merge)|\b(PR|MR) description\b"
    r"|\b(pull|merge) request\b.{0,80}\b(adds?|fix(es)?|renames?|removes?|approv\w{1,4})|\bapprov(ed|ing) (otherwise|once|after|with)"
    r"|^\W{0,3}(reviewer|author)( ?\d)?: |\brest LGTM\b|\bplease (rename|reword|squash|rebase)\b|\bcode review\b|\bno behaviou?r change"
    r"|\bwhat this (PR|MR|change) does\b|^\W{0,3}checklist\W{0,3}$|\bapproving\b|\blooks good to me\b|\bstyle guide\b"
    r"|\bcan we make this (a|an)\b|^> ?[+\-] "
)
_QUOTED_CHANGE = re.compile(r"^> ?[+\-]")
_MANUAL = re.compile(
    r"^(NAME|SYNOPSIS|DESCRIPTION|OPTIONS|ENVIRONMENT|SEE ALSO|EXIT STATUS|RETURN VALUE|ERRORS|NOTES|FILES)\s{0,3}$"
)
_MANIFEST = re.compile(
    r"^kind: (ConfigMap|PrometheusRule|AlertmanagerConfig)\b|^\[(FILTER|OUTPUT|PARSER|INPUT|SERVICE)\]|^ {0,4}- alert: "
)
_ALTERNATIVES = re.compile(
    r"[\"'(/][^\"'()|\n]{2,80}[^\s\"'()|](\|[^\s\"'()|][^\"'()|\n]{0,80}[^\s\"'()|]){1,20}[\"')/]"
)
"""What somebody searches for: "fallen off the bus|cannot register"."""
_USAGE = re.compile(
    r"(?i)^\s{0,3}usage: |^\s{0,3}(\w{1,12} )?(options|optional arguments|positional arguments|flags|environment variables):\s{0,3}$"
)
_OPTION = re.compile(
    r"^\s{1,12}(-\w(,? ?[A-Z<\[]?[\w>\]=.\-]{0,40})?,? {1,3})?-{1,2}[a-zA-Z][\w\-]{0,60}([ =][A-Z<\[{][^\s]{0,120})?"
    r"(,? -{1,2}[\w\-]{1,60}( [A-Z<\[{]\S{0,80})?){0,3}(\s{2,40}\S|\s{0,4}$)"
)
_DEFAULT = re.compile(
    r"(?i)\((default|env|choices|possible values|type)( is|s)?:? .{0,80}\)|\[default: ?[^\]]{0,60}\]"
)
_ARGUMENT_ERROR = re.compile(r"(?i)^[\w.\-/ ]{0,80}\b(error|exception|fatal|traceback): ?\S")
# pytest -v, unittest -v, gtest, go test, TAP, ctest.
_PASSED = re.compile(
    r"::\S{1,300} (PASSED|SKIPPED|XFAIL|XPASS)\b|^PASSED \S+::|^\[ {0,8}(RUN|OK|PASSED|SKIPPED) {0,8}\]|^\s{0,8}--- (PASS|SKIP): |^=== RUN "
    r"|^\s{0,8}ok \d{1,6} |^\s{0,8}test \S{1,200} \.\.\. (ok|ignored)\s{0,3}$|^\w{1,120} \([\w.]{1,200}\)( \.\.\.)? ok\s{0,3}$"
    r"|^\s{0,4}\d{1,5}/\d{1,5} Test\s.{1,200} Passed\b"
    r"|^\s{0,8}[\u2713\u2714\u2705] |^(PASS|SKIP) \S|^.{1,200} ?\.\.\. ?(ok|passed|PASSED|OK)\W{0,3}$"
)
# What a playbook or a pipeline calls its steps; whether one failed, its own line says.
_STEP = re.compile(
    r"^(TASK|PLAY|RUNNING HANDLER|ok|skipping|changed)( \[|: \[)|^\s{0,12}- name: |^##\[group\]"
)
_CODE = re.compile(
    r"^\s{0,40}(def |class |if |elif |else\b|for |while |return\b|raise |assert |with |try:|except\b|import |from \S+ import |#\s?(define"
    r"|include|if|endif|pragma)"
    r"|static |const |//|/\*|\*/|void |int |bool |auto |struct |case |switch ?\(|func |fn |let |var |pub |EXPECT_|ASSERT_|TEST(_F)?\("
    r"|@\w|[{}()\[\]]{1,8}[,;]?\s{0,3}$|\{ ?\w{1,40}: "
    r"|expr: |alert: |annotations:|labels:|summary: |description: |severity: |regex: |pattern: |match: |- alert: |- record: |- regex: |record: )"
    r"|^[^{].{0,300}[{};]\s{0,3}$|^\s{0,40}[\w.\-]{1,40}: [\"'][^\"']{1,200}[\"'],?\s{0,3}$|^\s{0,40}[\w.\[\]\"']{1,60} ?(=|:) ?[\[{(]\s{0,3}$"
    r"|^\s{0,40}[fbr]?[\"'][^\"']{1,200}[\"'](: .{1,200})?,\s{0,3}$"
    r"|^\s{0,40}\w[\w.]{0,60}\(.{0,200}\)\s{0,3};?$"
)
_STRICT_CODE = re.compile(
    r"^\s{0,40}(def \w{1,80}\(|class \w{1,80}[(:]|import [\w.]{1,80}( as \w+)?\s{0,3}$|from [\w.]{1,80} import |return\b|self\.\w"
    r"|if .{1,120}:\s{0,3}$|for \w.{1,120}:\s{0,3}$"
    r"|else:|#\s?(include|define|ifdef|ifndef|endif)\b|@\w{1,60}(\(|\s{0,3}$)|.{0,200}[;{]\s{0,3}$|fi\s{0,3}$|done\s{0,3}$|.{1,120}; (then"
    r"|do)\s{0,3}$|echo \"|[a-z_]\w{0,60}: \w{1,40}( = .{1,40})?,\s{0,3}$)"
)
_TEST_SOURCE = re.compile(r"^\s{0,8}(async )?def test_\w{1,80}\(")
_TICKET_HEADING = re.compile(
    r"(?i)^#{1,4} .{0,40}\b(bug|environment(?! variables)|happen(s|ed)|logs?|output|steps|reproduc\w{1,5}|expected|actual|describe|summary"
    r"|incident|timeline"
    r"|impact|error|problem|issue|symptoms?|traceback)\b"
)
_SAYS_FAULT = re.compile(
    r"^[^#=]{0,120}(\w(Error|Exception)|[Ww]arning|WARN(ING)?|[Ee]rror|ERROR|\b[Ff]ailed\b.{0,80})\b:? "
)
"""A program's message, pasted below the file that has its settings."""
_SET = re.compile(r"^[A-Za-z_][\w.\-]{1,80} ?= ?\S")
_FRAME = re.compile(r'^\s{0,12}File "|^Traceback \(|^\W{0,3}[\w.]{1,80}(Error|Exception): ')
_SEARCHING = re.compile(
    r"^\W{0,3}([\w@.:~/\[\]\-]{0,60}[$#%>] )?(sudo )?((dmesg|journalctl|zcat|tail|docker logs|kubectl logs"
    r"|cat \S{1,120}\.log)\b.{0,200}(\b[zefp]?grep\b|\brg\b|\bawk\b|--grep\b)"
    r"|([zefp]?grep|rg) .{1,300}(/var/log|\.log\b|\.err\b|\.out\b| -\w{0,4}[rR])|[zefp]?grep -\w{0,4}[rR]|nvidia-smi .{0,60}--query-\w{1,20}=)"
)
"""Looks for a fault in logs. What else is searched (modules, libraries) may be the fault by its absence."""
_ANSWERED = re.compile(r"(?i)->|=>|\b(shows|gives|returns|returned|prints|says|nothing|empty)\b")
"""What the command printed stands on the same line."""
_COMMAND = re.compile(
    r"^([\w@.:~/\[\]\-]{0,60}[$#%] |\+{1,3} |> )\S|^(for \w+ in |while |sudo |watch |cat /|nvidia-smi -|ethtool -|rdma |perfquery|dmesg|journalctl )"
)
_TEST_RUN = re.compile(
    r"(?m)^=+ test session starts =+|^\S{1,200}::\S{1,200} PASSED\b|^[.sxX]{3,120} {0,120}\[ {0,2}\d{1,3}%\]$"
)
_ALL_PASSED = re.compile(
    r"(?m)^=* ?\d{1,6} passed(, \d{1,6} (skipped|deselected|warnings?|xfailed|xpassed)( \([^)\n]{1,120}\))?){0,5} in [\d.]{1,12}s"
)
_COMPARED = re.compile(r"^E {2,8}(AssertionError: )?(assert |[\-+?] )")
"""pytest shows the two texts that a test compared."""
_DONE = re.compile(r"\[[xX]\]")
_ANSWER = re.compile(r"\"object\": ?\"(chat\.completion|text_completion|response)\b")
"""What a model answered."""
_UNLOADED = re.compile(r"\brmmod: ERROR: Module \S{1,60} is not currently loaded")
"""Taken out to be loaded anew, and it was not there: the step's own message."""
_HELP_METRIC = re.compile(r"^# (HELP|TYPE) \w")
_LIST_OF_SIGNALS = re.compile(r"^\s{0,8}\w{2,60}SIGNALS?=(SIG\w{2,10},?){1,20}$")
_TABLE_HEAD = re.compile(
    r"(?im)^\s{0,3}\|.{0,80}\b(message|symptom|error|meaning|cause|fix|what to do|description|action|code)\b.{0,200}\|\s{0,3}$"
)
_QUESTION_LIST = re.compile(r"(?m)^(Q\d{0,2}|A\d{0,2}|Question|Answer)[:.)] ")
_SOURCE_PLACE = re.compile(
    r"^\W{0,12}(\[?\S{0,120}\.(cpp|cc|cu|cuh|c|h|hpp|py|rs|go):\d{1,6}\b|\S{1,80}\.(cpp|cc|cu|c|rs):? \d{1,6} )"
)
_TALK = re.compile(
    r"(?i)\b(doc(s|string|umentation)?|readme|wiki|slides?|wording|translat\w{1,5}|typos?|(error|log) (message|text)s? (table|list"
    r"|catalogue|constant)s?"
    r"|rename[ds]?|unit ?tests?|test case|mock(s|ed)?|branch|changelog|release(d)? (notes?|today)|release notes|parser|alert rules?|regex(es)?"
    r"|it detects|course|quiz|exam|training slides|talk|blog( post)?|paper|book|joke|poem|song|t-shirt|agenda|outline|exceptions? names?"
    r"|glossary|lecture|homework|interview question|example output|for reference only|just an example|i invented|made[ -]up|hypothetical(ly)?)\b"
)
_PLAN = re.compile(
    r"(?i)\b(slides outline|agenda|post mortem of|quiz for|released today|translation check|glossary|homework|next sprint|proof-?read|(lunch|tech|short"
    r"|lightning) talk|roadmap|backlog|sprint plan\w{0,4}"
    r"|todo before|man ?page excerpt)\b|^\W{0,3}(readme|todo|roadmap|runbook|post|poll|survey|newsletter): "
)
_MESSAGE = re.compile(r"(?<![=\w])([\"`])\w[^\"`\n=]{1,80} [^\"`\n=]{1,80} [^\"`\n=]{1,80}\1")
_ADVICE = re.compile(
    r"(?i)\bif you (see|get|find|hit|encounter) [`\"']|(?m:^)\s{0,8}(!!! \w{3,12}\b|> \[!\w{3,12}\])|\bvalues accepted\b|\bthis event is logged when\b"
    r"|(?-i:\b[A-Z][A-Z0-9_]{5,60}) (environment )?(variable|setting|option) (controls|specifies|sets|defines)\b"
    r"|^\W{0,4}(note|nb): .{0,200}\b(on|for|with) (\w{1,20} )?(systems|nodes|machines|clusters|GPUs|NICs)\b"
    r"|\bthe table (below|above|at the end|in)\b|\b(this|the next) (page|section|chapter|guide) (lists|describes|explains|covers)\b"
)
_OWNED = re.compile(r"(?i)\b(i|we|my|our|me)\b")
_COMPLAINT = re.compile(
    r"(?i)\b(we|i) (\w{1,12} ){0,2}(get|got|gets|see|saw|seeing|keep|lost|lose|hit|tried|cannot|can't|cant|ran into|run into|need help)\b"
    r"|\b(our|my|the|all|every|each|both) (\w{1,20} ){0,4}(fail(s|ed|ing)?|crash(es|ed|ing)?|hangs?|hung|died?|dies|dying|stop(s|ped)?"
    r"|stuck|is down|are down"
    r"|log(s|ged)?:|stays?|(is|are) (slow|dead|gone|broken|stuck))\b"
    r"|\b(our|my) (\w{1,20} ){0,4}(prints?|says?|shows?)\b|\bsince (the|our|we|i|yesterday|today|this|last|monday|tuesday|wednesday"
    r"|thursday|friday|noon|midnight|tonight|\d)"
    r"|\bno change\b|\bany (idea|help|hint)|\banyone (else|seen|know|had|with)\b|\bplease help|won't start|wont start|out of service|(does"
    r"|do|did)(n't|nt| not) (start|work|come up|help)"
    r"|\b(tonight|yesterday|this morning|last night)\b|\bevery (start|run|time)\b|\bproduction (is )?down|\bwhat (is|'s) wrong|\bnow (every"
    r"|all|it|the|each)\b"
    r"|^#{2,4} ?(describe the bug|your current environment|steps to reproduce|logs\b|relevant log|environment\b|expected behaviou?r|actual)"
    r"|\bwhat we tried"
    r"|\bwhy (do|does|did|is|are)\b|\bwhat does (this|that|it) mean\b|\bhow (do|can) (i|we) (fix|solve)"
)
_RECAP = re.compile(
    r"(?m)^\S{1,120}\s{1,60}: ok=\d.{0,80}\bunreachable=(\d{1,6})\s.{0,20}\bfailed=(\d{1,6})\b"
)
_FAILED_RUN = re.compile(
    r"^[=! ]{2,80}.{0,40}\b[1-9]\d{0,5} (failed|errors?)\b|^FAILED \S{1,200}::|::\S{1,200} FAILED\b|^E {2,8}\S",
    re.MULTILINE,
)


def is_about_errors(text: str) -> bool:
    """A text that speaks about errors as a whole: its lines are no report, except those of a run (`is_mention`)."""
    head = text[:_HEAD_CHARACTERS]
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines:
        return False
    if len(lines) > 1 and begins_change(lines[0]):
        return True
    # A person's trouble goes into a few lines; comments and prose of long sources have all words.
    if len(lines) >= _LONG and (_is_code(lines) or _is_manual(lines) or is_changelog(lines)):
        return True
    if len({mark[0].lower() for mark in _REVIEW.finditer(head)}) > 1:
        return True
    if is_bare_changelog(lines) or _is_advice(head, lines):
        return True
    if _complains(head):
        return False
    return (
        is_changelog(lines)
        or is_history(lines)
        or _is_review(head, lines)
        or _is_help(lines)
        or _is_code(lines)
        or _is_manual(lines)
        or _is_reference(head, lines)
        or _is_settings(lines)
        or _is_talk(head, lines)
    )


def is_mention(line: str, about_errors: bool) -> bool:
    """Whether one line only names an error.

    By itself: the name of a test that passed, a step's name, a search pattern. In a text about errors: any line
    that has not the head of a run's log line, of an exception or of a message with its place in the source."""
    shown = line[:400]
    if (
        _PASSED.search(shown)
        or _STEP.match(shown)
        or _HELP_METRIC.match(shown)
        or _COMPARED.match(shown)
        or _LIST_OF_SIGNALS.match(shown)
        or _is_pattern(shown)
        or _ANSWER.search(shown)
        or _UNLOADED.search(shown)
        or (_SEARCHING.match(shown) and not _ANSWERED.search(shown))
    ):
        return True
    if about_errors and (is_entry(shown) or _QUOTED_CHANGE.match(shown) or _REVIEW.search(shown)):
        return True  # whatever it quotes
    return (
        about_errors
        and not shown.startswith('{"')
        and not (
            is_log_line(QUOTED.sub(" ", shown)) or _SOURCE_PLACE.match(shown) or _is_argument_error(shown)
        )
    )


def is_command(line: str) -> bool:
    """What was typed at a shell rather than what came of it."""
    return bool(_COMMAND.match(line[:400]))


def _is_argument_error(line: str) -> bool:
    return bool(_ARGUMENT_ERROR.match(line[:120])) and "(default" not in line


def _is_pattern(line: str) -> bool:
    """Alternatives in quotes, on a line that no program's log begins."""
    return (
        "|" in line
        and " = -1 E" not in line
        and bool(_ALTERNATIVES.search(line))
        and not is_log_line(_ALTERNATIVES.sub(" ", line))
    )


def _complains(text: str) -> bool:
    """A person tells of trouble here, whatever form the text has."""
    return bool(_COMPLAINT.search(QUOTED.sub(" ", text)))


def _is_settings(lines: list[str]) -> bool:
    """Settings, each with a comment on what it means: `ucx_info -cf`, a sysctl.conf."""
    if any(_SAYS_FAULT.search(line[:400]) for line in lines):
        return False
    comments = sum(line.startswith(("# ", "#\t")) for line in lines)
    settings = sum(bool(_SET.match(line[:200])) for line in lines)
    return comments >= 2 and settings >= 2 and comments + settings >= len(lines) - 2


def _is_review(head: str, lines: list[str]) -> bool:
    return (
        len(lines) <= 40
        and bool(_REVIEW.search(head[:4000]))
        and not any(is_log_line(line) for line in lines)
    )


def _is_help(lines: list[str]) -> bool:
    options = sum(bool(_OPTION.match(line[:300])) for line in lines)
    defaults = sum(bool(_DEFAULT.search(line[:600])) for line in lines)
    if any(_USAGE.match(line[:200]) for line in lines[:40]):
        defaults += 2
    return (options >= 1 and options + defaults >= 3) or (defaults >= 2 and 3 * defaults >= len(lines))


def _is_code(lines: list[str]) -> bool:
    if any(_FRAME.match(line[:200]) for line in lines):
        return False
    if sum(is_log_line(line) or line.startswith('{"') for line in lines) * 20 > len(lines):
        return False
    if any(_TEST_SOURCE.match(line[:120]) for line in lines[:8]):
        return True
    strict = sum(bool(_STRICT_CODE.match(line[:300])) for line in lines)
    if strict >= 5 and 4 * strict >= len(lines):
        return True
    code = sum(bool(_CODE.search(line[:300])) for line in lines)
    return code >= 3 and 10 * code >= 6 * len(lines)


def _is_manual(lines: list[str]) -> bool:
    """A page in Markdown: headings, none of them a ticket's, and no line of a run."""
    headings = sum(bool(HEADING.match(line)) for line in lines)
    return (
        headings >= 3
        and len(lines) >= 25
        and not any(_TICKET_HEADING.match(line[:120]) for line in lines)
        and not any(is_log_line(line) for line in lines)
    )


def _is_reference(head: str, lines: list[str]) -> bool:
    if _TABLE_HEAD.search(head) and sum(line.lstrip().startswith("|") for line in lines) >= 3:
        return bool(re.search(r"(?m)^\s{0,3}\|[ :|\-]{3,200}\|\s{0,3}$", head))
    asked = [match[1][0] for match in _QUESTION_LIST.finditer(head)]
    if sum(bool(_MANUAL.match(line[:40])) for line in lines) >= 2 or any(
        _MANIFEST.match(line[:60]) for line in lines[:8]
    ):
        return True
    return 2 * len(asked) >= len(lines) >= 2 and {"Q", "A"} <= set(asked)


def _is_advice(head: str, lines: list[str]) -> bool:
    """A manual's few sentences: what is done when something is seen, and of nobody's machine."""
    if len(lines) > 6 or len(head) > _SINGLE or any(is_log_line(QUOTED.sub(" ", line)) for line in lines):
        return False
    return bool(_ADVICE.search(head)) and not _OWNED.search(head)


def _is_talk(head: str, lines: list[str]) -> bool:
    """A person's few sentences that quote messages and are on documents, tests or plans."""
    if len(lines) > 6 or len(head) > _SINGLE:
        return False
    bare = QUOTED.sub(" ", head)
    if any(is_log_line(line) or is_command(line) for line in bare.splitlines()):
        return False
    if _PLAN.search(bare):
        return True
    if names_fault(bare) or "?" in bare:
        return bare != head and bool(_TALK.search(bare)) and not names_fault(bare)
    # Two messages side by side with nothing said of a fault are a list; so is a list of what was done.
    if len(_DONE.findall(bare)) >= 3 and "[ ]" not in bare:
        return True
    short = len(bare.split()) <= _FEW_WORDS  # a longer one tells something, in whatever language
    if len(lines) == 1 and short and len(_MESSAGE.findall(head)) >= 2 and not PERSON.search(bare):
        return True
    return bare != head and bool(_TALK.search(bare)) and not names_fault(bare)


def passes_tests(text: str) -> bool:
    """A test run without a failure: whatever its tests made the program log, they wanted."""
    head = text[:_HEAD_CHARACTERS]
    return bool(_TEST_RUN.search(head) and _ALL_PASSED.search(head)) and not fails_tests(text)


def plays_well(text: str) -> bool:
    """A playbook's run whose recap counts no failure: what failed in it was expected ("...ignoring")."""
    rows = _RECAP.findall(text[-_HEAD_CHARACTERS:])
    return bool(rows) and all(row == ("0", "0") for row in rows)


def fails_tests(text: str) -> bool:
    """A test run with a failure in it: its summary says so."""
    return bool(_FAILED_RUN.search(text[:_HEAD_CHARACTERS]))
