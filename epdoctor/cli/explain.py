"""`epdoctor explain`: from an error text, a log or a check's id to the cause, the proof and the fix."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from epdoctor.exceptions import UsageError
from epdoctor.explain.result import Candidate, CheckResult, Explanation

FORMATS = ("text", "json")


@click.command("explain")
@click.argument("words", nargs=-1, metavar="[TEXT | CHECK-ID | CAUSE-ID]...")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE|GLOB|DIR",
    help="Logs; repeatable. gzip and zstd too.",
)
@click.option(
    "--top", type=click.IntRange(1, 50), default=5, show_default=True, help="How many causes at most."
)
@click.option("--format", "format_", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="[FORMAT=]FILE", help="Write to a file instead."
)
@click.option("-v", "--verbose", is_flag=True, help="All causes in full, sources, more evidence.")
@click.option(
    "--check",
    "run_checks",
    is_flag=True,
    help="Run the checks that prove or rule out the causes, on this machine.",
)
@click.option(
    "--from",
    "from_",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.tar.gz",
    help="Judge those checks on a recording.",
)
@click.option("--all-nodes", is_flag=True, help="Run those checks on every node of the inventory.")
@click.option(
    "-i", "--inventory", multiple=True, metavar="FILE", help="Inventory for --all-nodes; implies it."
)
@click.option("-l", "--limit", metavar="PATTERN", help="Only these nodes.")
@click.option("-b", "--become", is_flag=True, help="Look as root, by sudo -n.")
@click.option("--no-state", is_flag=True, help="Write no cache on this machine.")
def explain_command(words: tuple[str, ...], **values: Any) -> int:
    """From an error text to the cause, the proof and the fix.

    \b
    epdoctor explain "cannot register cq buf"
    epdoctor explain -f server.log
    epdoctor explain -f 'logs/rank*.log'
    kubectl logs decode-0 | epdoctor explain
    epdoctor explain gpudirect.memory-registrable     a check's page

    Exit code 0: a cause was named, 1: nothing known, 2: usage.
    """  # fmt: skip
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    from epdoctor.cli.outputs import parse_outputs

    outputs = parse_outputs(values["format_"], values["outputs"], FORMATS)
    if words and values["files"] and all(Path(word).exists() for word in words):
        words, values["files"] = (), (*values["files"], *words)  # the shell has expanded -f logs/*.log
    if words and values["files"]:
        raise UsageError("give a text or -f FILE, not both")
    if len(words) == 1 and not any(c.isspace() for c in words[0]):
        page = _page(words[0])
        if page:
            sys.stdout.write(page)
            return 0
        if Path(words[0]).is_file():
            words, values["files"] = (), words
    from epdoctor.explain.answer import explain_logs

    answer = explain_logs(_logs(words, values["files"]), top=values["top"])
    if values["run_checks"] or values["from_"] or values["all_nodes"] or values["inventory"]:
        _apply_checks(answer, values)
    for output in outputs:
        _write(answer, output.format, output.path, values["verbose"])
    return 0 if answer.results else 1


def _page(word: str) -> str:
    """The page of a check or of a cause; empty where the word is neither."""
    from epdoctor.explain.causes import load_causes

    causes = load_causes()
    if word in causes:
        from epdoctor.report.cause_page import cause_page

        return cause_page(causes[word])
    if "." not in word or word.count(".") > 3 or "/" in word or ":" in word:
        return ""
    from epdoctor.catalog import load_checks
    from epdoctor.compare.baseline_check import CHECK_ID, check_of

    checks = {**load_checks(), CHECK_ID: check_of()}
    if word in checks:
        from epdoctor.report.check_page import check_page

        return check_page(checks[word])
    folders = {check.category for check in checks.values()}
    if word.partition(".")[0] in folders and word.replace(".", "").replace("-", "").isalnum():
        from epdoctor.catalog import did_you_mean

        raise UsageError(f"no check {word!r}{did_you_mean(word, checks)}", hint="epdoctor list checks")
    return ""


def _logs(words: tuple[str, ...], files: tuple[str, ...]) -> Iterator[tuple[str, Iterable[bytes]]]:
    from epdoctor.explain.logs import decoded, log_files, read_blocks

    if words:
        text = " ".join(words)
        if not text.strip():
            raise UsageError("no text", hint='epdoctor explain "cannot register cq buf"')
        yield "", [text.encode("utf-8", "surrogateescape")]
        return
    if files:
        names = tuple(name for name in files if name != "-")
        for path in log_files(names):
            yield str(path), read_blocks(path)
        if len(names) < len(files):
            yield "", decoded(sys.stdin.buffer, "standard input")
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no text", hint='epdoctor explain "cannot register cq buf", or -f server.log')
    yield "", _not_empty(decoded(sys.stdin.buffer, "standard input"))


def _not_empty(blocks: Iterator[bytes]) -> Iterator[bytes]:
    some = False
    for block in blocks:
        some = some or bool(block.strip())
        yield block
    if not some:
        raise UsageError("standard input is empty", hint="epdoctor explain -f server.log")


# ---------------------------------------------------------------- --check, --from, --all-nodes


def _apply_checks(answer: Explanation, values: dict[str, Any]) -> None:
    """Judge the causes' checks and let the results move the ranking."""
    from epdoctor.catalog import load_checks
    from epdoctor.explain.rank import apply_check_results

    candidates: list[Candidate] = answer.results + answer.maybe
    every = load_checks()
    wanted = {c: every[c] for item in candidates for c in item.cause.checks if c in every}
    if not wanted:
        answer.warnings.append("no check proves or rules out these causes")
        return
    from epdoctor.cli.explain_checks import check_results

    results: dict[str, CheckResult] = check_results(wanted, values)
    answer.results = apply_check_results(answer.results, results)
    answer.maybe = apply_check_results(answer.maybe, results)
    proven = [c for c in answer.maybe if any(r.status == "fail" for r in c.check_results)]
    if proven and not answer.results:
        answer.results, answer.maybe = proven, [c for c in answer.maybe if c not in proven]


# ---------------------------------------------------------------- output


def _write(answer: Explanation, format_: str, path: str, verbose: bool) -> None:
    from epdoctor.cli import terminal

    if format_ == "json":
        content = json.dumps(answer.to_json(), indent=1) + "\n"
    else:
        from epdoctor.report.explain_text import ExplainText

        if not path:
            text = ExplainText(
                answer,
                width=terminal.columns(sys.stdout),
                unicode=terminal.speaks_unicode(sys.stdout),
                verbose=verbose,
            )
            terminal.print_report(text)
            return
        content = ExplainText(answer, width=100, verbose=verbose).plain()
    if not path:
        sys.stdout.write(content)
        return
    from epdoctor.cli.output_file import failure, write_output

    try:
        write_output(path, [content])
    except OSError as error:
        raise UsageError(f"-o {failure(path, error)}") from error
