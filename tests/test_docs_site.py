"""The documentation: every relative link leads to a file and a heading, and the site's menu misses no page."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

from epdoctor.docs import pages

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "checks/README.md", "checks/errors/README.md", "tests/lab/README.md")),
]  # fmt: skip


@cache
def tokens(path: Path) -> list[Any]:
    return list(MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")))


def links(path: Path) -> list[str]:
    found = []
    for token in tokens(path):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                found.append(str(target))
    return found


@cache
def anchors(path: Path) -> frozenset[str]:
    """Headings as GitHub and mkdocs make them: lower case, blanks to hyphens."""
    text = path.read_text(encoding="utf-8")
    heads = re.findall(r"(?m)^#{1,6} (.+?)\s*$", text)
    return frozenset(re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads)


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in links(page):
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            whole = (page.parent / unquote(path)).resolve() if path else page
            if not whole.exists() or ROOT not in (whole, *whole.parents):
                broken.append(f"{page.relative_to(ROOT)}: {target}: no such file")
            elif anchor and whole.suffix == ".md" and anchor not in anchors(whole):
                broken.append(f"{page.relative_to(ROOT)}: {target}: no such heading")
    assert not broken, broken


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    values = item.values() if isinstance(item, dict) else item
    return [page for value in values for page in listed(value)]


def test_the_menu_has_each_page_once(hook: ModuleType) -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    found = listed(hook.menu(ROOT / "docs"))
    assert sorted(found) == sorted({*pages, "index.md"})


def test_links_out_of_docs_become_names(hook: ModuleType) -> None:
    text = "[a](docs/checks/index.md#gpu) [run](.ci/run) [`.ci/run`](.ci/run) <https://x.example> [w](https://x.example)\n```\n[x](docs/y.md)\n```"
    assert hook.links_from(text, "", "docs") == (
        "[a](checks/index.md#gpu) `.ci/run` `.ci/run` <https://x.example> [w](https://x.example)\n```\n[x](docs/y.md)\n```"
    )
    assert hook.links_from("[s](../../epdoctor/x.json)", "docs/ci", "docs/ci") == "s (`epdoctor/x.json`)"


def test_generated_pages_are_those_of_the_checks() -> None:
    wanted = pages()
    folder = ROOT / "docs"
    committed = {
        f"{kind}/{path.name}": path.read_text(encoding="utf-8")
        for kind in ("checks", "errors", "playbooks")
        for path in (folder / kind).glob("*.md")
    }
    differing = sorted(n for n in wanted.keys() | committed.keys() if wanted.get(n) != committed.get(n))
    assert not differing, "run python -m epdoctor.docs"
