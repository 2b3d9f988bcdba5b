"""The ladder's page in a real browser: attacked by what nodes and tools print, narrow, dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from epdoctor.bench.results import LadderReport, LayerResult, Measurement, Suspect
from epdoctor.model import Status
from epdoctor.report.bench_html import render_bench_html
from tests.bench_records import recorded
from tests.lab.browser import Opened, chromium
from tests.reports import NASTY
from tests.test_html_browser import ATTACKS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def opened(browser: Browser, report: LadderReport, folder: Path) -> Opened:
    """The page from disk. It has no script that would say when it is ready."""
    path = folder / "bench.html"
    path.write_bytes("".join(render_bench_html(report)).encode("utf-8", "backslashreplace"))
    found = Opened(browser.new_context().new_page())
    page, url = found.page, path.as_uri()

    def dismiss(dialog: Dialog) -> None:
        found.complaints.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda request: found.requests.append(request.url) if request.url != url else None)
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", dismiss)
    page.goto(url)
    return found


def hostile_ladder() -> LadderReport:
    texts = [*ATTACKS, *NASTY]
    ones = [
        Measurement(text, a, b, text, value=1.0, unit=text, expected=2.0, expected_from=text, status=Status.FAIL, detail=text, output=text)
        for text in texts
        for a, b in ((text, text + "2"), (text + "2", text))
    ]  # fmt: skip
    layers = [
        LayerResult(
            text, text, text, Status.FAIL, ones, text, text, text, [Suspect(text, text, 1, 1, text)], [(text, text)],
            (text,), text, [text],
        )
        for text in texts[:4]
    ]  # fmt: skip
    return LadderReport(
        tuple(texts), layers, dict.fromkeys(texts, "x"), 1.0, 90.0, 1, False, texts[0], texts[1]
    )


def test_hostile_text_executes_nothing(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, hostile_ladder(), tmp_path)
    page = found.page
    for summary in page.locator("summary").all()[:6]:
        summary.click()
    page.mouse.move(300, 500)
    page.pdf()
    assert page.locator("script, img, iframe, object, embed, link, a, svg").count() == 0
    assert "<script>window.pwned=1</script>" in page.inner_text("body")
    assert page.locator("table.heat td.fail").count() > 4
    assert page.evaluate("window.pwned") is None
    assert found.requests == []
    assert found.complaints == []


def test_a_recorded_run_is_readable_on_a_narrow_screen(browser: Browser, tmp_path: Path) -> None:
    report = recorded("soft-roce-mtu")
    found = opened(browser, replace(report, next="epdoctor explain rdma-mtu-mismatch"), tmp_path)
    assert "BROKEN AT LAYER 2" in found.page.inner_text("h1")
    assert "epdoctor explain rdma-mtu-mismatch" in found.page.inner_text("pre")
    assert found.page.locator("table.heat td.fail").count() >= 2
    found.page.set_viewport_size({"width": 400, "height": 800})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert found.complaints == []
