"""The HTML report in a real browser: opened from disk, used by mouse and by keyboard, attacked, printed."""

from __future__ import annotations

import copy
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from epdoctor.model import (
    Finding,
    Goal,
    NodeOutcome,
    Problem,
    Report,
    Severity,
    SharedTopology,
    Status,
    Waiver,
)
from epdoctor.nodenames import fold, split_terms
from epdoctor.report.formats import Style, render
from tests.lab.browser import Opened, chromium, open_page
from tests.reports import NASTY, check, large_report
from tests.test_html import demo_report, shape_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

ATTACKS = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    '"><img src=x onerror=window.pwned=3>',
    "'><svg onload=window.pwned=4>",
    "<!--<script>window.pwned=5//",
    "javascript:window.pwned=6",
    "]]></title></style></noscript><img src=http://127.0.0.1:9/x>",
    "\u202egpj.exe\u2028\u2029",
    "x" * 10_000,
    "{{constructor.constructor('window.pwned=7')()}}",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def written(report: Report, folder: Path, name: str = "report.html") -> Path:
    path = folder / name
    path.write_text("".join(render("html", report, Style())), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(demo_report(), tmp_path_factory.mktemp("html"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(large_report(), tmp_path_factory.mktemp("html"))


def quiet(opened: Opened) -> None:
    assert opened.requests == []
    assert opened.complaints == []
    assert opened.page.evaluate("window.pwned") is None


def test_it_opens_from_disk_and_asks_no_network(browser: Browser, demo: Path) -> None:
    opened = open_page(browser, demo)
    page = opened.page
    assert page.inner_text(".badge") == "NOT READY"
    assert page.title().startswith("NOT READY")
    links = page.eval_on_selector_all(".links a", "links => links.map(link => link.hash)")
    assert links == ["#readiness", "#findings", "#map", "#topology", "#drift", "#timings"]
    assert all(page.locator(f"section{link}").is_visible() for link in links)
    assert page.locator("#topology svg").is_visible()
    assert page.locator("#drift tbody tr").count() == 4
    assert page.locator("#drift").inner_text().count("gpu03") == 2
    quiet(opened)


def test_the_text_report_is_there_without_scripts(browser: Browser, demo: Path) -> None:
    """As where a CI server shows artifacts in a sandbox that runs no scripts."""
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(demo.as_uri())
    assert "NOT READY" in page.inner_text("noscript")


def test_search_narrows_findings_and_map(browser: Browser, demo: Path) -> None:
    opened = open_page(browser, demo)
    everything = opened.columns()
    assert opened.rows() == 4
    opened.search("gpu02")
    assert opened.rows() == 1
    assert "All NVLinks are up" in opened.page.inner_text("#findings")
    assert "link-up" not in opened.page.inner_text("#findings .findings")
    opened.search("gpu02 memlock")
    assert opened.columns() == 2
    opened.search("2.28.9")
    assert "drift.nccl-version" in opened.page.inner_text("#findings")
    opened.search("no-such-word")
    assert opened.page.locator("#map .empty").is_visible()
    assert opened.page.inner_text("#findings .empty:visible") == "No finding matches."
    opened.page.keyboard.press("Escape")
    assert (opened.rows(), opened.columns()) == (4, everything)
    assert opened.page.input_value("#search") == ""
    quiet(opened)


def test_filter_sort_and_fold(browser: Browser, large: Path) -> None:
    opened = open_page(browser, large)
    page = opened.page
    assert (opened.rows(), opened.columns()) == (6, 3)
    page.uncheck("text=fold equal nodes")
    assert opened.rows() == 512
    page.check("text=all 150 checks")
    assert opened.columns() == 150
    page.click(".counts .k-W")
    assert (opened.rows(), opened.columns()) == (6, 1)
    assert page.locator(".finding:visible").count() == 1
    page.click(".counts .k-W")
    first = 'document.querySelector("[role=rowheader]").textContent'
    assert page.evaluate(first) == "gpu0008"
    page.select_option("select >> nth=0", "name")
    assert page.evaluate(first) == "gpu0001"
    quiet(opened)


def test_the_map_is_used_by_keyboard(browser: Browser, large: Path) -> None:
    opened = open_page(browser, large)
    page = opened.page
    page.uncheck("text=fold equal nodes")
    page.check("text=all 150 checks")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    page.focus('[role="grid"]')
    place = (
        "[document.querySelector('[role=row]').ariaRowIndex, document.querySelector('#cell').ariaColIndex]"
    )
    assert page.evaluate(place) == ["2", "2"]
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert page.evaluate(place) == ["3", "3"]
    page.keyboard.press("Control+End")
    assert page.evaluate(place) == ["513", "151"]
    box, grid = page.locator("#cell").bounding_box(), page.locator('[role="grid"]').bounding_box()
    assert box is not None
    assert grid is not None
    assert grid["y"] < box["y"] < grid["y"] + grid["height"]
    assert "solid" in page.evaluate("getComputedStyle(document.querySelector('.map')).outlineStyle")
    page.keyboard.press("Control+Home")
    assert "error" in (page.get_attribute("#cell", "aria-label") or "")
    page.keyboard.press("Enter")
    assert "LimitMEMLOCK" in page.inner_text("#detail")
    page.click("text=All of this node")
    assert "3 findings" in page.inner_text("#detail") or "2 findings" in page.inner_text("#detail")
    page.keyboard.press("Escape")
    quiet(opened)


def test_a_click_opens_the_cell_it_hits(browser: Browser, demo: Path) -> None:
    opened = open_page(browser, demo)
    page = opened.page
    page.focus('[role="grid"]')
    page.keyboard.press("ArrowDown")
    wanted = page.get_attribute("#cell", "aria-label") or ""
    box = page.locator("#cell").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 8, box["y"] + 8)
    node, check_id = wanted.split(" · ")[:2]
    assert check_id in page.inner_text("#detail")
    assert f"on {node}" in page.inner_text("#detail")
    quiet(opened)


def test_names_are_folded_as_on_the_terminal(browser: Browser, tmp_path: Path) -> None:
    names = [f"gpu{number:02d}" for number in range(1, 41)]
    names += [f"r{rack}n{place:02d}" for rack in (1, 2) for place in range(8, 13)] + [
        "login1",
        "10.0.0.9",
        "10.0.0.10",
    ]
    odd = [name for at, name in enumerate(names) if at % 3]
    bad = Problem("8 MiB", "unlimited")
    report = Report(
        Goal(multinode=True),
        [NodeOutcome(name) for name in names],
        [
            Finding("gpu.a", Status.FAIL if name in odd else Status.PASS, Severity.ERROR, name, problems=(bad,) if name in odd else ())
            for name in names
        ],
        {"gpu.a": check("gpu.a")},
    )  # fmt: skip
    opened = open_page(browser, written(report, tmp_path))
    shown = opened.page.inner_text("#findings .nodes")
    assert sorted(split_terms(shown)) == sorted(split_terms(fold(odd)))
    quiet(opened)


def test_commands_are_copied_as_shown(browser: Browser, demo: Path) -> None:
    opened = open_page(browser, demo, permissions=["clipboard-read", "clipboard-write"])
    page = opened.page
    page.click("header .copy")
    # The clipboard answers when it has the text; only then does the button say so. A condition as
    # JavaScript text would be polled inside the page, where the report's own policy forbids eval.
    page.locator("[role=status]", has_text="Copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == "sudo modprobe nvidia_peermem"
    quiet(opened)


def test_dark_and_light(browser: Browser, demo: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = open_page(browser, demo, color_scheme="dark")
    light = open_page(browser, demo, color_scheme="light")
    assert light.page.evaluate(colour) != dark.page.evaluate(colour)
    before = dark.page.evaluate(colour)
    dark.page.click("#theme")
    assert dark.page.evaluate(colour) == light.page.evaluate(colour) != before
    dark.page.reload()
    dark.page.wait_for_selector("html[data-ready=yes]")
    assert dark.page.evaluate(colour) == light.page.evaluate(colour), "the choice is kept"
    quiet(dark)


def test_text_is_readable_in_both_themes(browser: Browser, demo: Path) -> None:
    """WCAG 2.1 AA, 4.5:1: text and dim text on both grounds, and signs on their colours at 3:1."""
    for scheme in ("light", "dark"):
        page = open_page(browser, demo, color_scheme=scheme).page
        read = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
        for front, least in (("--text", 4.5), ("--dim", 4.5)):
            for ground in ("--bg", "--panel", "--code"):
                assert contrast(page.evaluate(read, front), page.evaluate(read, ground)) >= least
        for ground in ("--error", "--warning", "--unknown", "--note", "--waived", "--good"):
            assert contrast(page.evaluate(read, "--on"), page.evaluate(read, ground)) >= 3, (scheme, ground)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
        channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_narrow_screen_does_not_scroll_sideways(browser: Browser, demo: Path) -> None:
    page = open_page(browser, demo, viewport={"width": 400, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_it_prints(browser: Browser, demo: Path, large: Path) -> None:
    for path, name in ((demo, "gpu03"), (large, "gpu[0008,0108,0208]")):
        opened = open_page(browser, path)
        pdf = opened.page.pdf(format="A4")
        assert pdf.startswith(b"%PDF-")
        pages = len(re.findall(rb"/Type\s*/Page\b", pdf)) or len(
            re.findall(rb"/Type\s*/Page\b", inflated(pdf))
        )
        assert 1 <= pages <= 12
        opened.page.emulate_media(media="print")
        opened.page.wait_for_selector("#paper table")
        assert name in opened.page.inner_text("#paper")
        assert not opened.page.locator(".map").is_visible()
        quiet(opened)


def inflated(pdf: bytes) -> bytes:
    found = b""
    for match in re.finditer(rb"stream\r?\n", pdf):
        try:
            found += zlib.decompressobj().decompress(pdf[match.end() :])
        except zlib.error:
            continue
    return found


# ---------------------------------------------------------------- hostile text


def hostile_report() -> Report:
    texts = [*ATTACKS, *NASTY]
    known = {"gpu.a": check("gpu.a"), "drift.b": check("drift.b", scope="cluster")}
    names = [f"{text[:120]}{index}" for index, text in enumerate(texts)]
    report = large_report(1, 1)
    report.checks = known
    report.outcomes = [
        NodeOutcome(
            name,
            error=text if index % 3 == 0 else "",
            hint=text,
            warnings=(text,),
            slowest_probe=text,
            seconds=1,
        )
        for index, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    report.findings = []
    for index, (name, text) in enumerate(zip(names, texts, strict=True)):
        waiver = Waiver("gpu.a", text, text, "2026-12-12", text)
        problem = Problem(text, text, (text,), None, (text,), (text,), text)
        status = (Status.FAIL, Status.UNKNOWN, Status.SKIP)[index % 3]
        problems = (problem,) if status is Status.FAIL else ()
        report.findings.append(
            Finding("gpu.a", status, Severity.ERROR, name, problems, reason=text, waiver=waiver if index % 2 else None,
                    waived=text if index % 2 else "", traceback=text)
        )  # fmt: skip
        drift = Problem(text, text, odd_nodes=(name,))
        report.findings.append(Finding("drift.b", Status.FAIL, Severity.WARNING, "", (drift,)))
    report.source = "".join(ATTACKS)
    report.warnings = list(texts)
    report.hca_sets = dict.fromkeys(texts[:4], names)
    report.vllm_versions = {"1" + texts[1]: names}
    report.readiness = []
    report.collected_at = ATTACKS[1]
    shape = shape_of("8xh200-ib")
    report.topologies = [
        SharedTopology((name,), poisoned(shape, text)) for name, text in zip(names[:12], texts, strict=False)
    ]
    return report


def poisoned(value: Any, text: str) -> Any:
    """Every text in it replaced, as a report that somebody saved may hold."""
    if isinstance(value, dict):
        return {key: poisoned(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, text) for item in value]
    return text if isinstance(value, str) else value


def test_hostile_text_executes_nothing(browser: Browser, tmp_path: Path) -> None:
    opened = open_page(browser, written(hostile_report(), tmp_path))
    page = opened.page
    for button in page.locator("#topology .tabs button").all():
        button.click()
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    page.uncheck("text=fold equal nodes")
    page.focus('[role="grid"]')
    for _ in range(len(ATTACKS)):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
    opened.search("<script>")
    opened.search("")
    page.mouse.move(300, 500)
    page.pdf()
    assert page.locator("img, iframe, object, embed, link, a[href^='javascript']").count() == 0
    assert page.locator("script").count() == 2
    assert "<script>window.pwned=1</script>" in page.inner_text("#unreached")
    quiet(opened)


def test_the_policy_stops_what_gets_in_all_the_same(browser: Browser, demo: Path, tmp_path: Path) -> None:
    text = demo.read_text(encoding="utf-8")
    inside = "<script>window.pwned=1</script><img src=http://127.0.0.1:9/x onerror=window.pwned=2>"
    path = tmp_path / "tampered.html"
    path.write_text(text.replace('<div id="app"></div>', inside + '<div id="app"></div>'), encoding="utf-8")
    opened = open_page(browser, path)
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.pwned") is None
    assert sum("Content Security Policy" in text for text in opened.complaints) >= 2


def test_a_saved_report_makes_the_same_page(browser: Browser, tmp_path: Path) -> None:
    from epdoctor.report.json_report import render_json
    from epdoctor.report.saved import load_report

    report = demo_report()
    (tmp_path / "report.json").write_text(render_json(report))
    opened = open_page(browser, written(load_report(tmp_path / "report.json"), tmp_path))
    assert opened.page.locator("#topology svg").is_visible()
    bare = json.loads((tmp_path / "report.json").read_text())
    del bare["topologies"]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    without = open_page(browser, written(load_report(tmp_path / "bare.json"), tmp_path, "bare.html"))
    assert without.page.locator("#topology").count() == 0
    quiet(opened)
    quiet(without)


def test_a_report_of_nothing_opens(browser: Browser, tmp_path: Path) -> None:
    report = copy.deepcopy(large_report(1, 1))
    report.outcomes, report.findings, report.checks, report.readiness = [], [], {}, []
    opened = open_page(browser, written(report, tmp_path))
    assert opened.page.locator(".badge").is_visible()
    opened.page.pdf()
    quiet(opened)
