"""The last lines of a run: in the width of the terminal, and with the command that goes on."""

import io
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from epdoctor.cli.provision_order import Order
from epdoctor.cli.provision_report import fold_line, say_next
from epdoctor.provision.result import Failure, Remark, RunResult


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(monkeypatch: pytest.MonkeyPatch, words: str, result: RunResult, **missed: str) -> str:
    order = cast("Order", SimpleNamespace(values={"restart_services": False, "reboot": "never"}))
    out = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["epdoctor", *words.split()])
    monkeypatch.setattr(sys, "stdout", out)
    say_next(order, result, missed)
    return out.getvalue()


def run(*kinds: str, **fields: Any) -> RunResult:
    return RunResult(
        ("a",), ("limits",), remarks=[Remark("a", "limits", kind, "x") for kind in kinds], **fields
    )


def test_what_waits_is_what_the_next_command_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "provision inv.ini --yes"
    assert said(monkeypatch, words, run("note")) == ""
    # It disturbs the node, so it is not said with --yes.
    both = "next      epdoctor provision inv.ini --restart-services --reboot when-needed\n"
    assert said(monkeypatch, words, run("reboot", "restart")) == both
    never = "provision inv.ini --reboot never --limit a"
    assert said(monkeypatch, never, run("reboot")) == (
        "next      epdoctor provision inv.ini --limit a --reboot when-needed\n"
    )


def test_what_did_not_come_to_its_end_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words, again = "provision inv.ini --yes", "again     epdoctor provision inv.ini --yes\n"
    failed = [Failure("a", "limits", "t", "e", "w")]
    assert said(monkeypatch, words, run("reboot", failures=failed)) == again
    assert said(monkeypatch, words, run(unreachable={"a": "no answer"})) == again
    assert said(monkeypatch, words, run(), b="no answer") == again


def test_long_lines_hang_under_their_first_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "reboot needed   gpu[01-16]: the driver options are live after the next boot of each of them"
    monkeypatch.delenv("COLUMNS", raising=False)
    assert fold_line(line) == [line]
    monkeypatch.setenv("COLUMNS", "60")
    assert fold_line(line) == [
        "reboot needed   gpu[01-16]: the driver options are live",
        "                after the next boot of each of them",
    ]
    # A difference is a file's own text.
    difference = (
        " " * 18 + '+options nvidia NVreg_RegistryDwords="PeerMappingOverride=1;" NVreg_EnableStreamMemOPs=1'
    )
    assert fold_line(difference) == [difference]
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert len(fold_line(line * 2)) > 1
