"""Launches written to a folder and read."""

from __future__ import annotations

import textwrap
from pathlib import Path

from epdoctor.launch.model import LaunchSet, Server
from epdoctor.launch.read import read_launch


def read(folder: Path, *texts: str, name: str = "serve.sh", **files: str) -> LaunchSet:
    """Read the texts as files of this name (numbered from the second on); `files` lie beside (`_` is a dot)."""
    for beside, text in files.items():
        (folder / beside.replace("_", ".")).write_text(textwrap.dedent(text))
    paths: list[str] = []
    for number, text in enumerate(texts):
        path = folder / (name if not number else f"{number}-{name}")
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        paths.append(str(path))
    return read_launch(paths)


def one(folder: Path, text: str, name: str = "serve.sh", **files: str) -> Server:
    """The only server of a text that reads without trouble."""
    found = read(folder, text, name=name, **files)
    assert not found.trouble, found.trouble
    assert len(found.servers) == 1, [server.name for server in found.servers]
    return found.servers[0]


def texts(server: Server) -> dict[str, str]:
    return {name: option.value.text for name, option in server.options.items()}
