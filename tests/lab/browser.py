"""Debian's Chromium, headless, driven by playwright (without a browser of playwright's own).

Pages are opened from disk. Everything that a page asks the network for, says on the console or throws is kept.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"

_WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.longTasks.push(entry.duration); })
  .observe({ type: "longtask", buffered: true });
"""


def unavailable() -> str | None:
    """What is missing to start a browser, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "no playwright: pip install -e '.[dev]'"
    if not os.access(CHROMIUM, os.X_OK):
        return "no chromium: apt-get install chromium"
    return None


@dataclass
class Opened:
    """A page, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """URLs asked for, without the file itself."""
    complaints: list[str] = field(default_factory=list)
    """Console errors and warnings, exceptions, violations of the content security policy."""

    def rows(self) -> int:
        """Rows that the map shows, without its header."""
        return int(self.page.get_attribute('[role="grid"]', "aria-rowcount") or 1) - 1

    def columns(self) -> int:
        return int(self.page.get_attribute('[role="grid"]', "aria-colcount") or 1) - 1

    def search(self, text: str) -> None:
        self.page.fill("#search", text)
        self.page.wait_for_timeout(150)


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox refuses root, which the labs' tests run as.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, path: Path, *, watch: bool = False, **options: Any) -> Opened:
    """Open a file in a context of its own; returns when its scripts have drawn it. `watch`: count long tasks."""
    page = browser.new_context(**options).new_page()
    opened = Opened(page)
    url = path.as_uri()
    if watch:
        page.add_init_script(_WATCH)

    def on_request(request: Request) -> None:
        if request.url != url:
            opened.requests.append(request.url)

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            opened.complaints.append(message.text)

    def on_dialog(dialog: Dialog) -> None:
        opened.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", on_dialog)
    page.goto(url)
    page.wait_for_selector("html[data-ready=yes]", timeout=20000)
    return opened
