"""Warnings of something that came right in the end: a retry that succeeded, a port that was taken, a name that
resolved by another way. Programs that start together say these at every healthy start. Pure."""

from __future__ import annotations

import re
from collections.abc import Container

_SEARCHED = 128 * 1024
_RETRY = re.compile(
    r"(?i)\bre-?try(ing)?\b|\bretry_in\b|\bretries\b|\btrying (again|port|to (re)?connect|\d)|\battempt \d|\battempting to (re)?connect"
    r"|\bnot (yet )?(reachable|connected)\b|\bnot (yet (ready|up|available)|(ready|up|available) yet)\b|\bnot ready\b"
    r"|\bwaiting for .{0,60}\b(connect\w{0,4}|ready|server|leader|master|head|peers?|etcd|nats|store)\b|\bfailed to connect\b"
    r"|\bconnect(ion|ing)?\b.{0,80}\b(failed|refused|timed out|unavailable)|\bcode = Unavailable\b|\b(service unavailable|503)\b|\brefused\b.{0,30}\b(attempt|try)\b"
    r"|\b(addresses of .{1,120}|hostname of the client socket) cannot be retrieved|\bname or service not known|\bcould not resolve host|temporary failure in name"
    r"|\bthrown while requesting (HEAD|GET)\b|\b(port|address) .{0,40}\b(in use|taken)\b|\bprobe failed\b"
)
"""Of peers, ports and names only: a fallback to a slower path ("using sockets instead") goes on just as well, and is
what somebody looks for."""
_GRAVE = re.compile(
    r"\b(ERROR|FATAL|CRITICAL|PANIC|Traceback|EMERG)\b|\[E\d{4} |^[EF]\d{4} \d\d:|\blevel=(error|fatal)\b|\"(level|severity)\": ?\"(error|fatal)\""
    r"|\b\w{2,60}(Error|Exception)\b: |(?i:giv(e|en|ing) up|gave up|retries exhausted|no more retries|after \d{1,4} (retries|attempts|tries)\W{0,3}$)"
)
_MILD = re.compile(
    r"\b(INFO|DEBUG|WARN|WARNING|TRACE)\b|^\W{0,2}[IWD](20\d\d)?\d{4} \d\d:|\[[IWD]\d{4} |\blevel=(info|warn(ing)?|debug)\b"
)
_LAST_TRY = re.compile(r"\b(\d{1,4}) ?(?:/|of) ?(\d{1,4})\b")
_TROUBLE = re.compile(
    r"(?i)\b(error|fatal|critical|traceback|aborted|segmentation fault|core dumped|panic(ked)?|killed|exited with (code )?[1-9]|exit (code|status):? [1-9]"
    r"|giving up|gave up|unable|cannot|can't|could not|failed|failure|timed out|timeout|hang|hung|stuck|not responding|crash\w{0,8}|lost|died|dead|xid"
    r"|backoff|evicted|unhealthy|disconnected)\b|Error\b|Exception\b|\bNCCL WARN\b|\[E\d{4} |^[EF]\d{4} \d\d:|\bwarning: .{0,80}\bfail"
)
_HARMLESS = re.compile(
    r"(?i)\b(errors?|failed|failures?|lost|timeouts?|dropped|unhealthy|wrong)\b ?[\w ]{0,30}[=:] ?0\b(?!\.\d)|\b0 (failed|errors?|lost|dropped|timeouts?)\b"
    r"|\bno (errors?|failures?)\b|\b(with|without) error[- ]?(handling|correction)|(timeout|error|fail)\w{0,40}[=:'\"]{1,3} ?'?(\d|true|false|none|null)\S{0,20}"
)
_SUCCESS = re.compile(
    r"(?i)Application startup complete|Init COMPLETE|(?<!dis)(?<!not )(?<!not yet )\bconnected\b|\bconnection (established|accepted)|accepted the connection"
    r"|\" 200\b|\bserving on\b|\blistening (on|at)\b|\bbus bandwidth\b|\bpassed\b|\b(is|are|now|:) ready\b|\bready,|\bregistered\b|exit (status|code):? 0\b"
    r"|\bsuccess(ful(ly)?)?\b|\bsucceeded\b|\bstartup finished\b|\btook \d{1,6}\.?\d{0,6} s(econds)?\b|\bresolved\b|\brequests? served\b|\b(ok|done|online)\W{0,3}$"
    r"|(?<!not )(?<!not yet )(?<!/)\bhealthy\b(?![ -](check|threshold|node count))"
    r"|\blink (is )?up\b|\bcreated ucp context\b|\b(inter|intra)-node cfg#\d|\bbandwidth:? {1,3}\d{1,4}\.?\d{0,4} ?[GM]B/s"
    r"|\bReady\s{1,30}True\b|\blease granted\b|\b(answered|status|code|returned)[ =:]{1,2}200\b|\bstarted\b.{0,40}\bserver\b|\bStarting .{0,40}server.{0,20} on http"
)
_SERVES = re.compile(
    r"Application startup complete|\" 200\b|Avg (prompt|generation) throughput|Init COMPLETE"
)
_LINK_DOWN = re.compile(r"(?i)\blink (is )?(not ready|down)\b|\bcarrier lost\b|\bcable unplugged\b")
_PROBED = re.compile(
    r"(?i)^\W{0,3}([$#>] )?(ping|ssh|nslookup|dig|dns|host|getent|traceroute|arping|telnet)\b"
)
"""That a name resolves, or a host answers, is no success of what failed above: it speaks for a firewall."""
_SLIGHT = re.compile(
    r"\b(DEBUG|TRACE)\b|(?i:\bdisabling gdrcopy\b|\bskipping (the )?(device|port|nic|hca|this)\b|\. skipping\b)"
)
_NEVER_MILD = re.compile(
    r"(?i)\b(worker|pod|node|rank|lease|link|peer|client) (was )?(lost|died|expired|removed|down|gone)\b"
)


def may_recover(line: str) -> bool:
    """A try that failed and may be repeated, not said as an error and not the last of its tries."""
    shown = line[:400]
    if _GRAVE.search(shown) or _NEVER_MILD.search(shown) or not _RETRY.search(shown):
        return False
    tries = _LAST_TRY.search(shown)
    return tries is None or tries[1] != tries[2] or tries[1] == "1"


def is_mild(line: str) -> bool:
    """Logged as information or a warning, and no word of an end in it."""
    shown = line[:400]
    return bool(_MILD.search(shown[:200])) and not _GRAVE.search(shown) and "NCCL WARN" not in shown


def is_slight(line: str) -> bool:
    """Tells a developer what is tried, or names one device or library that is done without.

    Where all ends well this is nothing, not even for a fault with which a service runs all the same."""
    return bool(_SLIGHT.search(line[:400]))


def served(above: str) -> bool:
    """Whether a service was up already: what it says then is of its work, not of its start."""
    return _SERVES.search(above) is not None


def is_link_down(line: str) -> bool:
    """A port goes down: once, while a node starts, that is no fault."""
    return bool(_LINK_DOWN.search(line[:400]))


def is_success(line: str) -> bool:
    """Says that something worked, and no word of trouble."""
    shown = line[:400]
    return bool(_SUCCESS.search(shown)) and not _TROUBLE.search(_HARMLESS.sub(" ", shown))


def went_well(after: str, forgiven: Container[str] = ()) -> bool:
    """Whether what comes below says that it worked, and tells of no other trouble than `forgiven` lines."""
    good = False
    for line in after[:_SEARCHED].splitlines():
        shown = line[:400]
        if may_recover(shown) or is_slight(shown) or shown.strip() in forgiven:
            continue
        if _TROUBLE.search(shown) and _TROUBLE.search(_HARMLESS.sub(" ", shown)):
            return False
        good = good or (bool(_SUCCESS.search(shown)) and not _PROBED.match(shown))
    return good
