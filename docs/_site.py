"""What mkdocs cannot know: the menu, made from the files there are; the first page, which is README.md; and links
that lead out of docs/, which become the path's name.

https://www.mkdocs.org/dev-guide/plugins/#events, as hooks of mkdocs.yml.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
USE = ("lint.md", "bench.md", "fix.md", "diff.md", "formats.md", "ci/README.md")
"""In this order, those that exist; a page that is named nowhere goes under "Inside"."""
INSIDE = ("design.md", "add-a-check.md", "accuracy.md", "detection.md", "tested.md")
_LINK = re.compile(r"\[([^\]\n]{1,300})\]\(([^)\s]{1,300})\)")
_FENCE = re.compile(r"^(```|~~~)")


def on_config(config: Any) -> Any:
    config["nav"] = menu(DOCS)
    return config


def on_files(files: Any, config: Any) -> Any:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=links_from(text, "", "docs")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    if page.file.src_uri == "index.md":
        return markdown
    here = posixpath.join("docs", posixpath.dirname(page.file.src_uri))
    return links_from(markdown, here, here)


def menu(docs: Path) -> list[Any]:
    """The navigation. Pages below checks/ stand under the first part of their id."""
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    top = sorted(page for page in pages if "/" not in page and page != "index.md")
    use = [page for page in USE if page in pages]
    inside = [page for page in INSIDE if page in pages]
    inside += [page for page in top if page not in {*use, *inside}]
    by_category: dict[str, list[Any]] = {}
    for page in sorted(pages):
        if page.startswith("checks/") and page != "checks/index.md":
            name = posixpath.basename(page)[: -len(".md")]
            by_category.setdefault(name.partition(".")[0], []).append({name: page})
    return [
        {"Quick start": "index.md"},
        {"Use": use},
        {"Checks": ["checks/index.md", *({name: found} for name, found in by_category.items())]},
        {"Causes": ["errors/index.md", *_named(pages, "errors/")]},
        {"Playbooks": ["playbooks/index.md", *_named(pages, "playbooks/")]},
        {"Inside": inside},
    ]


def _named(pages: set[str], folder: str) -> list[Any]:
    found = sorted(page for page in pages if page.startswith(folder) and page != f"{folder}index.md")
    return [{posixpath.basename(page)[: -len(".md")]: page} for page in found]


def links_from(text: str, here: str, base: str) -> str:
    """Links of a page that lies in the folder `here`, for one that is shown in `base` (both from the repository's
    root). Where they lead out of docs/, the path's name is told: the site has no such page."""
    inside_fence = False
    lines = []
    for line in text.split("\n"):
        if _FENCE.match(line.lstrip()):
            inside_fence = not inside_fence
        lines.append(line if inside_fence else _LINK.sub(lambda m: _link(m, here, base), line))
    return "\n".join(lines)


def _link(match: re.Match[str], here: str, base: str) -> str:
    label, target = match.groups()
    path, hash_, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return match.group(0)
    whole = posixpath.normpath(posixpath.join(here, path))
    if whole.startswith("docs/"):
        return f"[{label}]({posixpath.relpath(whole, base)}{hash_}{anchor})"
    code = f"`{whole}`"
    return code if label in (whole, code, posixpath.basename(whole)) else f"{label} ({code})"
