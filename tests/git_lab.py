"""Git repositories for tests: a folder becomes one, with submodules by path."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

_OWN = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always")


def git(folder: Path, *words: str) -> str:
    """What git says to `words` in the folder."""
    argv = ["git", *_OWN, "-C", str(folder), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, parts: Mapping[str, Path] | None = None) -> str:
    """All of the folder as a commit of a repository there, with new submodules (path there -> repository); its full name."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    for place, repository in (parts or {}).items():
        git(folder, "submodule", "--quiet", "add", str(repository), place)
    git(folder, "commit", "-qm", "x")
    return git(folder, "rev-parse", "HEAD")
