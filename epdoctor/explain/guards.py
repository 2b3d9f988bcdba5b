"""What a text is before its words are weighed: a question, a program's output, a healthy value. Pure.

Likeness of words alone names a cause only for a person's own words about a fault. Everything here is bounded."""

from __future__ import annotations

import re

_ASKS = re.compile(
    r"(?i)^\W{0,3}(how|what|which|where|who|can|could|should|may|is|are|do|does|has|have|hello|hi|please|list|show|give|tell|write|explain"
    r"|describe|compare|summari[sz]e)\b|\?\W{0,3}$"
)
_SYMPTOM = re.compile(
    r"(?i)error|fail|(?<!de)fault|exception|abort|crash|cannot|\bcan ?not|n['\u2019`]t\b|\b(do|does|did|is|are|was|ca|could|wo|would|has"
    r"|have)nt\b|\bnot\b|\bno\b|never"
    r"|unable|denied|refus|time[sd]? ?-?out"
    r"|invalid|missing|mismatch|differ|\bhang|\bhung|stuck|flaky|unstable|kill|dead|\bdie[sd]?\b|dying|lost|los[et]|\bbroken?\b|break|corrupt|exceed|exhaust|too "
    r"|slow|wrong|bad\b|drop|down\b|unknown|undefined|un(available|supported|expected|reachable)|fall|fell|gone|conflict"
    r"|collision|forg[eo]t|leak|\breset|block|reject|garbage|(?<![a-z])oom\b|out of|instead|without|only|xid|stale|empty|\bold\b|\bfull\b|already|\bstop(s"
    r"|ped)\b|\bassert|degrad|collaps|still (on|at)\b|\b50[234]\b|\bsits?\b"
    r"|\bfehl|geht nicht|l(\u00e4|ae)uft nicht|startet nicht|kein[e ]|abgest(\u00fc|ue)rzt|h(\u00e4|ae)ngt|\b(\u00e9|e)chou"
    r"|introuvable|impossible|panne\b|ne (marche|d(\u00e9|e)marre)"
    r"|falsch|\bbleib\w{0,4} (\w{1,20} ){0,3}(stehen|h(\u00e4|ae)ngen)|st(\u00fc|ue)rzt|fehlt|bricht|abgebrochen|verweiger|kaputt|langsam|funktioniert n"
    r"|plante\b|erreur|bloqu|refus(e|\u00e9)|manqu|ne (fonctionne|trouve)|no (funciona|arranca|conecta|encuentra)|\bfalla|se cuelga|\blent[eo]?\b"
)
_ASKS_HOW = re.compile(r"(?i)^\W{0,3}(how|what|whats|which)\b[^?]{0,400}\?")
_FAULT = re.compile(
    r"(?i)error|fail|(?<!de)fault|exception|abort|crash|cannot|\bcan ?not|\b(wo|ca|does|did|is)n['\u2019`]?t\b|unable|denied|refus|time[sd]? ?-?out"
    r"|invalid|missing|mismatch|\bhang|\bhung|stuck|flaky|unstable|kill|dead|\bdie[sd]?\b|lost|\bbroken?\b|corrupt|slow|wrong|garbage|(?<![a-z])oom\b"
    r"|out of|\bxid"
    r"|complain|\bnever (work|start|c[oa]me|connect|finish|get|transfer|go)|geht nicht|startet (nicht|kein)"
)
"""The clearer ones: "how many ...? not deployed yet" tells of none."""
_CALM = re.compile(
    r"(?i)\bnothing (is |was )?(broken?|wrong|fail(ed|ing)|crash(ed|ing)|urgent)|\beverything (runs|works|is (fine|ok|good|green))|\ball (is )?(good"
    r"|fine|green)\b"
    r"|\bno (problem|issue|error|failure|fault)s?\b|\bjust (asking|planning|curious|wondering)"
)
_NO_CASE = re.compile(
    r"(?i)\bno (problem|issue|error|fault)s?\b|\b(for|to) (my|our) (own )?understanding\b|\bout of curiosity\b|\b(just|only) (reading|curious|wondering"
    r"|planning|asking|want(ed)? to (know|understand|learn))\b|\b(quick|general|basic|stupid|dumb|theoretical) question\b"
    r"|\b(cluster|everything|setup|all) (is|runs|works) (fine|well|ok|good)\b|\bbefore (our|the|we|my) (\w{1,20} )?(rollout|go[- ]?live|deploy\w{0,6}|order|buy|start|install)\b"
)
"""Somebody who says that there is no case, or only asks."""
_CLEAR_FAULT = re.compile(
    r"(?i)error|fail|exception|abort|crash|denied|refus|time[sd]? ?-?out|\bhang|\bhung|stuck|kill|\bdie[sd]?\b|lost|\bbroken?\b|corrupt|garbage"
    r"|(?<![a-z])oom\b|out of memory"
    r"|\bxid (?!\d{2,3} mean)|slow|wrong|cannot|unable|\bwon['\u2019]?t\b|mismatch|missing"
)
_CLOSED = re.compile(
    r"(?i)\b(all (is )?(good|fine)|nothing to (do|fix)(?! with)|no action|closing (this|it)|(this|that) one is (done|solved)|without (a |any )?problems?"
    r"|(is|was|as) expected|expected\W{0,3}$|(all|they|checked.{0,40}) match|passed on all|nothing (is )?deployed|not a problem|documented in"
    r"|in general\W{0,3}\?|review welcome|(please )?review: |for the (wiki|runbook|training))"
)
"""Said of what is over, or never was."""
_YET = re.compile(
    r"(?i)\b(but|however|otherwise|still|except|although|though|only|yet|until|aber|trotzdem|(is|are|was|were|does|do|did) ?n(o|.)?t)\b"
)
_QUOTE = re.compile(r"\"[^\"]{3,200}\"|`[^`]{3,200}`")
_FINE = re.compile(
    r"(?i)\b(runs?|running|works?|working)( just| quite)? (fine|well|ok|good|great|perfectly)\b"
)
_PROGRAM = re.compile(
    r"(?m)^\W{0,3}[\w.]{0,80}(Error|Exception|Warning)(:|\W{0,3}$)"
    r"|^\W{0,3}(INFO|WARN(ING)?|ERROR|DEBUG)\b|\b(NCCL|NVSHMEM|NIXL|UCX) +(INFO|WARN|ERROR|DEBUG|DIAG|TRACE)\b|\bINFO\b.{0,40}\["
    r"|^\([A-Z]\w{2,60} (rank=\d{1,5} )?pid=\d{1,10}\) |\b(WARNING|ERROR|DEBUG|CRITICAL)\b.{0,40}\[\w{1,60}\.py:\d{1,6}\]"
    r"|^usage: |^(error|fatal|warning): |^\w[\w .\-]{0,40}: error: |^\[ {0,6}\d{1,8}\.\d{1,9}\] |^\[\d{10}\.\d{1,9}\] |\bkernel: "
    r"|\b[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.\d\b|^[IWEF]\d{4} \d\d:\d\d|^\d{4}-\d\d-\d\d[ T]\d\d:\d\d"
    r"|^(Successfully (installed|built)|Requirement already satisfied|Collecting |Installing collected) ?"
    r"|^\[\w{2,12}\] (Rank|rank) \d"
)
_COLLECTOR = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]{8,20}(Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] ")
"""What a container's log collector puts in front of every line, whatever it is."""
_STRUCTURED = re.compile(
    r"^\s{0,40}[\w./\-\[\]() ]{1,60}\s{0,60}[=:]\s{0,4}\S|^[$#>] |\(-\w\) |\S(\t| {3,})\S|^[|+\-]|^\s{0,40}[\w.\-/]{1,60}=\S"
)
_ROW = re.compile(
    r"^\s{0,40}[\w./\-()\[\] ]{1,60}(\s{0,60}[:=]\s{1,20}|\s{2,60}|\.{3,60} ?)\S{1,40}( \S{1,20}){0,3}$"
)
_PROMPT = re.compile(r"^(\[?[\w.\-]{1,40}@[\w.\-]{1,60}[: ][^$#]{0,60}\]?)?[$#] ?[a-z./]\S{1,80}( |$)")
"""A command at a shell's prompt."""
_SETTING = re.compile(r"^\s{0,40}(export )?[\w.\-/]{3,80} ?= ?\S{1,200}$")
_FAULT_COUNT = re.compile(
    r"(?i)^[\w \t\-/().\[\]#]{0,80}(error|fail|exceed|uncorr|correct|pending|slowdown|retired|drop|down|discard|pressure|blacklist"
    r"|violation|overrun|invalid|xid)[\w \t\-/()]{0,40}(\s?:\s{1,20}|\s=\s{1,20}|[:.]*\.{3,80}\s{0,3}|\t|\s{3,60})"
    r"(0|0x0+|no|none|n/a|false|pass|not active|inactive|disabled|0 ok)\W{0,3}$"
)
_ZERO_COUNTER = re.compile(
    r"(?i)^\s{0,40}(?=[\w.\-]{0,60}(err|fail|exceed|corr|drop|down|discard|timeout|retr|nak|viol|overrun|out_of|duplicate|invalid|lost"
    r"|xid|sequence|symbol|flap|replay))[a-z][\w.\-]{2,80}(\s{1,60}|\s?[:=]\s{0,20})(0|0x0{1,16})\s{0,8}$"
)
"""One name and a zero: "local_ack_timeout_err 0"."""
_ZERO = re.compile(
    r"(?i)\b[\w.]{0,60}(err|error|errors|down|downed|drops?|dropped|discards?|discarded|timeouts?|failures?|failed|retries)(_\w{1,30})?"
    r"\"?\s{0,3}[:= ]\s{0,3}(0|false)\b(?!\.\d)|\bno (errors?|failures?|faults?|problems?|issues?)( (found|detected|reported|seen))?\b"
)
"""The same within a line."""
_NIL = r"(0|0x0+|0\.0+|no|none|n/a|\[n/a\]|false|pass(ed)?|not active|inactive|ok)"
_ENDS_IN_NIL = re.compile(r"(?i)((?:[ \t:=|,]{1,60}|\.{3,80} ?)" + _NIL + r"){1,32}[\s|,;]{0,60}(?:\s--)?$")
_COUNTED = re.compile(
    r"(?i)(error|\berrs?\b|_errs?(_|\b)|\bdown(ed)?\b|_down(ed)?(_|\b)|drop|discard|failures?\b|\bfailed\b|_failed\b|exceeded|nak_retry|crc"
    r"|replay|slowdown|xid|flap"
    r"|correctable|\blost\b|violation|overrun|out_of_|retrans|restarts?\b|health|timeouts?_err|timeouts\b|\berr\b|failure|access timeout"
    r"|remap|threshold|recover|drained)"
)
"""What counters of faults are called: `rdma statistic`, `ethtool -S`, perfquery, nvidia-smi, DCGM, a shift's report."""
_RAISED = re.compile(r"\w(Error|Exception): ")
"""A sentence that ends in a setting: "RuntimeError: GIN is unavailable, EP_DISABLE_GIN=0"."""
_NAMES_ONE = re.compile(
    r"(?i)(\b(number|index|device|minor|rank|gpu|port|node|id|version|code)|type)\W{0,3}$"
)
"""Zero is the first of many there: "failed, device minor number 0"."""
_NUMBER_LAST = re.compile(r"[\s,:=|]\d{1,20}$")
_SAYS = re.compile(
    r"(?i)\b(cannot|unable|could not|can't|failed (to|with)|returned|exited|with|works|fails|because|but|was|got)\b|denied|refused"
    r"|(?-i:^[A-Z][A-Z0-9_]{2,80}=)"
)
_NONE_OF = re.compile(
    r"(?i)(?<![\w.:/\-=])0 (?=[^,.;\n]{0,30}(xid|error|fallen|failed|failures|lost|dropped|ecc\b|retries|timeouts|flaps|warnings))[^,.;\n]{1,40}"
)
_PAIR = re.compile(
    r"(?<![\w.\-])(errors:? )?\"?[a-z0-9_]{0,40}(xid|fatal|err|ecc|dbe|sbe|crc|fail|throttl|lost|drop|down|retrans|replay|remap|restarts|flap)[a-z0-9_]{0,40}\"?"
    r"\s{0,3}[ :=]\s{0,3}\"?(0|none|false)\b(?=\"?(\s{0,4}$|\s{2}|[,;}\]]|\s\w{1,40}=))"
)
"""In a sentence: "512 GPUs, 0 Xid 79, 0 NVLink errors"."""
_SAMPLE = re.compile(r"^[a-zA-Z_:]\w{2,120}\{[^}]{0,400}\} 0(\.0)?\s{0,4}(\d{10,16})?$")
"""A sample in the text format of Prometheus: counters of faults, and never `up`."""
_RUNS = re.compile(
    r"^\s{0,8}\S{1,160}\s{1,80}((\d{1,4})/\2\s{1,40}Running|0/\d{1,4}\s{1,40}Completed)\s{1,40}0\s"
)
"""A row of `kubectl get pods`: all containers run, none was started again."""
_MAY_BE_HEALTHY = re.compile(
    r"(?i)(?<![\w.])(0|0x0+|no|none|n/a|false|pass(ed)?|inactive|not active|disabled|ok)\b|0\s{0,8}$|resolved|cleared|/\d{1,4}\s{1,40}(Running|Completed)|\d{3}\.\d{2}"
)
"""One search instead of ten for the lines of a log, most of which report a fault."""
_RESOLVED = re.compile(
    r"(?i)^\W{0,3}((alert|incident|alarm)s? )?(resolved|cleared)\b|^.{0,40}\"status\": ?\"resolved\"|^(\w{1,20} ){0,3}OK ?[:\-] (?!.{0,400}\b(error|failed)\b)"
)
"""How an alert manager heads what is over."""
_VERSION = re.compile(r"(?<![\d.])\d{3}\.\d{2,3}(?:\.\d{2})?(?![\d.]*\d)")
_AGREES = re.compile(r"(?i)\b(nothing|no(ne)?) (differs?|difference|mismatch)\b")
_FOREIGN = re.compile(
    r"^(\S{1,40} \S{1,40} )?(\w{3} {1,2}\d{1,2} [\d:]{8} \S{1,80} )?(nginx|psql|pg_\w{2,20}|postgres|mysqld?|mariadbd?|redis(-server|-cli)?"
    r"|mongod|npm|yarn|pnpm|javac?|mvn"
    r"|gradle|terraform|svn|apache2?|httpd|php(-fpm)?|gem|haproxy|traefik|caddy|elasticsearch|kafka|zookeeper|rabbitmq(-server)?"
    r"|postfix\S{0,20}|dovecot|sshd"
    r"|grafana(-server)?|jenkins|gitlab-runner|minio|vault|consul|named|squid|samba|smbd|cupsd)(\[\d{1,10}\])?: |^npm ERR!|^Error from server \(NotFound\): "
    r"|^\d{4}/\d\d/\d\d [\d:]{8} \[\w{3,8}\] \d{1,10}#\d{1,10}: "
    r"|^Exception in thread \"|^java\.|^\s{1,8}at (java|org|com|sun)\."
    r"|^Caused by: (java|org|com)\.|^Error: error (creating|configuring|acquiring)|^\W{0,3}Error: .{0,60}\bterraform\b|^ORA-\d"
)
"""Programs that have no part in serving: what they say of ports and peers is their own affair."""
_OWN_FRAME = re.compile(r'(?m)^\s{0,12}File "([^"\n]{1,300})", line \d')
_STACK_PATH = re.compile(
    r"(?i)/(site|dist)-packages/|vllm|sglang|deep_?ep|deep_?gemm|flashinfer|nixl|nvshmem|ray/|torch/|mooncake|lmcache|dynamo|nccl|pplx|<"
)
_HOME = re.compile(r"(?i)^/(home|Users)/|notebook|ipykernel|\bscratch/")
_OWN_AFFAIR = re.compile(r"(?i)OutOfMemoryError|out of memory|\b(requests|httpx|aiohttp|urllib3|openai)\.\w")
_NIL_VALUE = re.compile(r"(?i)^" + _NIL + "$")
_IDENTIFIER = re.compile(
    r"\b[A-Z][A-Z0-9]{0,30}(?:_[A-Z0-9]{1,30}){1,12}\b|(?<!\S)--[a-z][\w\-]{1,60}|\bdifference between\b"
)
"""A setting's name may hold any word: VLLM_ENGINE_READY_TIMEOUT_S tells of no timeout."""
_ASKS_MODAL = re.compile(
    r"(?i)^\W{0,3}(can|could|should|may|do|must|shall|is it|would it|would) (i|we|one|you|it|worth)\b[^?]{0,400}\?"
)
_SAID_SO = re.compile(r"(?i)\b(says?|prints?|complains?|got|but)\b")
_SAID = re.compile(r"(?i)\b(but|however|says?|said|prints?|gives?|got|gets?|still|since|n['\u2019]t)\b")
_GOES_WELL = re.compile(
    r"(?i)\b(jobs?|everything|all|it|they|nodes?|pods?|things|cluster|service|this|that)( \w{1,20}){0,3} (runs?|works?|working|running"
    r"|serves?|goes|going)( \w{1,12}){0,1} (fine|well|ok|good|great|smoothly)\b"
    r"|\b(works|runs|worked) (fine|well|great|ok)\b|\b(everything|all) (is )?green\b|\bfor all\b|\b(\d{1,4})/\d{1,4} (for|on|in) all\b"
    r"|\btests? passed\b|\bno cluster\b"
)
_TELLS = re.compile(
    r"^(we|our|my|i|im|ive|me|us|but|still|now|again|fine|ok|works|worked|same|after|since|why"
    r"|everything|nothing|never|only|just|other|another|one|both|every|when|until|then|says|say|said"
    r"|gives|got|get|goes|does|did|want|wants|need|tried|thats|its|cant|wont|doesnt|isnt|dont|didnt|so"
    r"|because|bc|w|pls|thx|ours|they|yesterday|today|before|although|even|somehow|suddenly|sometimes"
    r"|always|old|new|which|what|how|should|am|have|has|had|without|too|there|here"
    r"|wir|unser|unsere|nach|seit|nicht|mehr|wieder|immer|aber|ist|wird|kein|nous|nos|mais|sur|les|est|pas|depuis|apr(\u00e8)?s)$"
)
"""Words that people use when they tell something, and programs hardly ever print."""
_TOLD_WORDS = 2
_REMARK = 300
_WORD = re.compile(r"[a-z'\u2019]{1,30}")
_LETTERS = re.compile(r"[A-Za-z]{3}")
_ONLY_NAME = re.compile(r"^\W{0,3}[\w.]{0,80}(Error|Exception|Warning|Interrupt|Exit)\W{0,3}$")


def asks_only(text: str) -> bool:
    """A question that tells of no fault: nothing is wrong yet, so no cause is named."""
    plain = text.strip()
    if "\n" in plain:
        return False
    plain = _IDENTIFIER.sub("x", plain[:4000])
    if "?" in plain and _CALM.search(plain) and not _FAULT.search(_CALM.sub(" ", plain)):
        return True  # "no errors, only planning"; but "it hangs with no error?" tells of one
    if "?" in plain and _NO_CASE.search(plain) and not _CLEAR_FAULT.search(_NO_CASE.sub(" ", plain)):
        return True  # "isn't" may be asked of how things work
    if len(plain) <= _REMARK and _CLOSED.search(plain) and not _YET.search(plain):
        return not _CLEAR_FAULT.search(_QUOTE.sub(" ", _CLOSED.sub(" ", plain)))
    if _ASKS_HOW.search(plain[:600]) or ("?" in plain and _GOES_WELL.search(plain[:2000])):
        return not _FAULT.search(plain[:2000])
    if _ASKS_MODAL.search(plain[:600]) and not _SAID.search(plain[:2000]):
        return not _FAULT.search(plain[:2000])
    if _SAID_SO.search(plain[:2000]):
        return False
    return bool(_ASKS.search(plain[:600])) and not _SYMPTOM.search(plain[:2000])


def is_program_output(text: str) -> bool:
    """Printed by a program rather than written by a person: a log line, a table, settings, an exception."""
    lines = [line for line in text[:20_000].splitlines() if line.strip()]
    if any(is_log_line(line) for line in lines):
        return True
    if len(lines) == 1:
        return bool(_SETTING.match(lines[0]))
    if _PROMPT.match(lines[0][:200]) if lines else False:
        return True
    return 2 * sum(bool(_STRUCTURED.search(line[:400])) for line in lines) >= len(lines)


def names_fault(text: str) -> bool:
    """Whether a clear word of a fault is in it: fails, dies, refused, hangs."""
    return bool(_FAULT.search(_IDENTIFIER.sub(" ", text[:4000])))


def is_foreign(line: str) -> bool:
    """Printed by a program that is no part of serving: a web server, a database, a build tool."""
    return bool(_FOREIGN.match(line[:300]))


def is_own_script(text: str) -> bool:
    """A traceback that only has frames of a person's own script."""
    frames = _OWN_FRAME.findall(text[:20_000])
    return bool(frames) and all(_HOME.search(path) and not _STACK_PATH.search(path) for path in frames)


def may_be_own(line: str) -> bool:
    """A GPU's memory ran out, or a client of a web service failed: whose fault that is, only the frames say."""
    return bool(_OWN_AFFAIR.search(line[:400]))


def is_table(text: str) -> bool:
    """Names and values, one pair a line: such lines are whole, and two of them say nothing together."""
    lines = [line for line in text[:8000].splitlines() if line.strip()]
    rows = sum(bool(_ROW.match(line[:200])) for line in lines)
    return rows >= 3 and 2 * rows >= len(lines)


def is_log_line(line: str) -> bool:
    """One line with the head of a log, a kernel message or an exception."""
    return bool(_PROGRAM.search(_COLLECTOR.sub("", line[:400])))


def tells_of_trouble(text: str) -> bool:
    """Whether any word of a fault is left once the counters that stand at zero are out."""
    return bool(_SYMPTOM.search(without_healthy(text)[:8000]))


def is_healthy(line: str) -> bool:
    """A counter or state named after a fault that says there is none: "Uncorrectable Error : 0".

    Also a pod whose containers all run, and parts whose versions are the same."""
    shown = line[:400].rstrip()
    if not _MAY_BE_HEALTHY.search(shown):
        return False
    if (
        _FAULT_COUNT.match(shown)
        or (_ZERO_COUNTER.match(shown[:200]) and not _SAYS.search(shown))
        or _RUNS.match(shown)
    ):
        return True
    if _RESOLVED.match(shown):
        return True
    if _SAMPLE.match(shown):
        return bool(_COUNTED.search(shown.partition("{")[0].replace("_", " ").lower()))
    rest = _PAIR.sub(" ", _NONE_OF.sub(" ", shown))
    if rest != shown and _COUNTED.search(shown) and not (_FAULT.search(rest) or _SAYS.search(rest)):
        return True
    end = _ENDS_IN_NIL.search(shown)
    if end is not None and "==" not in end[0]:
        name = shown[: end.start()]
        return (
            len(name.split()) <= 8
            and not name.endswith("!")
            and not _RAISED.search(name)
            and not _NAMES_ONE.search(name)
            and not _NUMBER_LAST.search(name)
            and bool(_COUNTED.search(name))
            and not _SAYS.search(name)
        )
    versions = _VERSION.findall(shown)
    return len(versions) > 1 and len(set(versions)) == 1 and not _SYMPTOM.search(_AGREES.sub(" ", shown))


def counts_faults(text: str) -> bool:
    """Names a counter of faults: a table's head, or the command that reads it."""
    return bool(_COUNTED.search(text[:400]))


def is_nothing(line: str) -> bool:
    """A row of values that are all zero, no, or not there; the first may be a number that names the row."""
    values = [value.strip() for value in line[:400].split(",")]
    if len(values) > 1 and values[0].isdigit():
        values = values[1:]
    return all(_NIL_VALUE.match(value) for value in values)


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
    """Faults are named only to say that there are none, or all is said to run."""
    told = _ZERO.search(text) is not None or any(is_healthy(line.rstrip()) for line in text.splitlines())
    told = told or ("\n" not in text.strip() and _GOES_WELL.search(text[:2000]) is not None)
    return told and not tells_of_trouble(text)


def is_bare_name(text: str) -> bool:
    """An exception's name and nothing more: every program raises it."""
    return bool(_ONLY_NAME.match(text.strip()[:200]))
