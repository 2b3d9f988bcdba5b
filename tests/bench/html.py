"""The HTML report of a big cluster in headless Chromium: size, load, search, filter, sort; the longest task of each."""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from epdoctor.model import Problem, Report, Severity, Status
from tests.bench.measure import median, table
from tests.reports import large_report

if TYPE_CHECKING:
    from tests.lab.browser import Opened

_SCREEN = {"width": 1400, "height": 900}
_STEP = """
async (step) => {
  await new Promise((done) => setTimeout(done, 120));
  window.longTasks.length = 0;
  const from = performance.now();
  (0, window.steps[step])();
  if (step.startsWith("search")) await new Promise((done) => setTimeout(done, 60));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  const took = performance.now() - from;
  await new Promise((done) => setTimeout(done, 200));
  return [took, Math.max(0, ...window.longTasks)];
}
"""
_STEPS = """
window.steps = {
  "show every node": () => document.querySelectorAll("#map input[type=checkbox]")[0].click(),
  "show every check": () => document.querySelectorAll("#map input[type=checkbox]")[1].click(),
  "sort nodes by name": () => choose(0, "name"),
  "sort nodes, worst first": () => choose(0, "worst"),
  "sort checks by catalogue": () => choose(1, "catalogue"),
  "filter: warnings": () => document.querySelector(".counts .k-W").click(),
  "filter: off": () => document.querySelector(".counts .k-W").click(),
  "search a node": () => type("0123"),
  "search a check": () => type("check-07"),
  "search a finding's text": () => type("mlx5"),
  "search: off": () => type(""),
  "scroll the map": () => { document.querySelector(".map").scrollTop = 4000; },
  "fold equal nodes": () => document.querySelectorAll("#map input[type=checkbox]")[0].click(),
  "dark": () => document.getElementById("theme").click(),
};
const choose = (place, value) => {
  const select = document.querySelectorAll("#map select")[place];
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
// The search waits 60 ms for the next letter; that wait is in its figure.
const type = (text) => {
  const box = document.getElementById("search");
  box.value = text;
  box.dispatchEvent(new Event("input"));
};
Object.keys(window.steps)
"""


def varied(report: Report, share: float) -> Report:
    """A part of the passed findings failed, each in its own words: rows that do not fold."""
    dice = random.Random(7)
    report.findings = [
        dataclasses.replace(f, status=Status.FAIL, severity=Severity.WARNING, problems=(Problem(f"mlx5_{dice.randrange(8)} on {f.node}", "up"),))
        if f.status is Status.PASS and dice.random() < share
        else f
        for f in report.findings
    ]  # fmt: skip
    return report


def html(options: argparse.Namespace) -> int:
    """Measure and print; returns 1 where there is no browser."""
    from epdoctor.report.formats import Style, render
    from tests.lab.browser import chromium, open_page, unavailable

    missing = unavailable()
    if missing:
        print(missing)
        return 1
    with tempfile.TemporaryDirectory(prefix="epdbench-") as scratch, chromium() as browser:
        for share in (0.0, options.share):
            report = varied(large_report(options.nodes, options.checks), share)
            path = Path(scratch) / f"{share}.html"
            path.write_text("".join(render("html", report, Style())), encoding="utf-8")
            runs = [_run(open_page(browser, path, watch=True, viewport=_SCREEN)) for _ in range(options.runs)]
            rows = []
            for step in runs[0]:
                took, longest = zip(*(run[step] for run in runs), strict=True)
                rows.append([step, f"{median(took):.0f}", _long(median(longest)), _long(max(longest))])
            print(
                f"{options.nodes} nodes x {options.checks} checks, {share:.0%} more failed in words of their own: "
                f"{path.stat().st_size / 1e6:.2f} MB; median of {options.runs}; Chromium {browser.version}, {os.cpu_count()} CPUs"
            )
            print(table(["step", "ms to the next frame", "longest task ms", "at worst"], rows), "\n")
    return 0


def _run(opened: Opened) -> dict[str, tuple[float, float]]:
    """Step -> (ms to the next frame, longest task of 50 ms or more, or 0)."""
    page = opened.page
    page.wait_for_timeout(500)
    load = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    found = {"load": (load, max(page.evaluate("window.longTasks"), default=0.0))}
    for step in page.evaluate(_STEPS):
        took, longest = page.evaluate(_STEP, step)
        found[step] = (took, longest)
    page.close()
    return found


def _long(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds else "under 50"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The ``html`` command."""
    parser = commands.add_parser("html", help="the HTML report in a browser")
    parser.add_argument("--nodes", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--checks", type=int, default=150, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="medians are printed (default: %(default)s)")
    parser.add_argument(
        "--share",
        type=float,
        default=0.2,
        help="of what passed, failed in a second page (default: %(default)s)",
    )
    parser.set_defaults(call=html)
