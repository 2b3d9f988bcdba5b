"""`--source KIND=PLACE`: where the nodes get packages from, looked at before a node is touched.

wheelhouse=DIR   wheels on this machine; copied to the nodes, no index is asked
packages=DIR     debs, rpms and archives on this machine, with a SHA256SUMS
bundle=DIR       both, as `epdoctor provision --bundle DIR` made it
index=URL        package index (PEP 503)
mirror=URL       repository of debs (flat) or rpms
mirror-key=FILE  public key of that repository
git=URLPREFIX    stands for https://github.com/ in git URLs; a folder of this machine is read here,
                 one that is not there by the node that builds
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from epdoctor.catalog import did_you_mean
from epdoctor.exceptions import UsageError
from epdoctor.provision import checksums

_KINDS = {
    "wheelhouse": "source_wheelhouse",
    "packages": "source_packages",
    "bundle": "",
    "index": "source_pip_index_url",
    "mirror": "source_mirror",
    "mirror-key": "source_mirror_key",
    "git": "source_git_prefix",
}
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:\S*\Z")  # git's user@host:path


@dataclass(frozen=True)
class Sources:
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the role `source`."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Of the bundle; empty where there is none."""


def parse_sources(words: Sequence[str]) -> Sources:
    """Raises UsageError for an unknown kind, a place that is not there, a wrong checksum, or a URL that would
    show a password."""
    variables: dict[str, str] = {}
    manifest: Mapping[str, Any] = {}
    for word in words:
        kind, equals, place = word.partition("=")
        if not equals or not place:
            raise UsageError(f"--source {word}: not KIND=PLACE", hint=f"KIND is one of {', '.join(_KINDS)}")
        if kind not in _KINDS:
            raise UsageError(
                f"--source {word}: no kind {kind!r}{did_you_mean(kind, _KINDS)}; there are {', '.join(_KINDS)}"
            )
        if kind == "bundle":
            found, manifest = _bundle(_folder(kind, place))
        elif kind in ("wheelhouse", "packages"):
            found = {_KINDS[kind]: str(_checked(kind, _folder(kind, place)))}
        elif kind == "mirror-key":
            if not Path(place).expanduser().is_file():
                raise UsageError(f"--source {kind}={place}: no such file")
            found = {_KINDS[kind]: str(Path(place).expanduser().resolve())}
        elif kind == "git":
            found = {_KINDS[kind]: _git(place)}
        else:
            found = {_KINDS[kind]: _url(kind, place)}
        for name, value in found.items():
            if name in variables:
                raise UsageError(f"--source {kind} is given twice, or by a bundle too")
            variables[name] = value
    return Sources(variables, manifest)


def _folder(kind: str, place: str) -> Path:
    path = Path(place).expanduser().resolve()
    if not path.is_dir():
        raise UsageError(f"--source {kind}={place}: no such folder on this machine", hint=f"ls -ld {place}")
    return path


def _checked(kind: str, path: Path) -> Path:
    if kind == "wheelhouse" and not any(path.glob("*.whl")):
        raise UsageError(
            f"--source wheelhouse={path}: no wheel in it", hint=f"pip download -d {path} PACKAGE==VERSION"
        )
    if kind == "packages" or (path / checksums.NAME).exists():
        checksums.verify(path)
    return path


def _url(kind: str, place: str) -> str:
    if re.search(r"[\s\"'`$\\]", place):
        raise UsageError(f"--source {kind}={place!r}: a URL has no spaces, quotes, $ or \\")
    if kind == "git" and (place.startswith("/") or _SCP.match(place)):
        return place
    parts = urlsplit(place)
    schemes = ("https", "http", "file", "ssh", "git") if kind == "git" else ("https", "http", "file")
    if parts.scheme not in schemes or not (parts.netloc or parts.scheme == "file"):
        raise UsageError(f"--source {kind}={place}: not a URL of {', '.join(schemes)}")
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        raise UsageError(
            f"--source {kind}: a user name or password in a URL shows in the nodes' process lists",
            hint="put it into /etc/pip.conf or ~/.netrc of the nodes, and give the URL without it",
        )
    return place


def _git(place: str) -> str:
    """The prefix, with what parts it from "owner/name.git"."""
    path = Path(place).expanduser()
    if path.is_dir():
        if (path / "objects").is_dir():
            raise UsageError(
                f"--source git={place}: this is one repository; give the folder above its owner",
                hint="mirrors/deepseek-ai/DeepEP.git is found by --source git=mirrors",
            )
        place = str(path.resolve())
    elif "://" not in place and not place.startswith("/") and not _SCP.match(place):
        raise UsageError(f"--source git={place}: no such folder on this machine", hint=f"ls -ld {place}")
    place = _url("git", place)
    return place if place.endswith(("/", ":")) else f"{place}/"


def _bundle(path: Path) -> tuple[dict[str, str], Mapping[str, Any]]:
    from epdoctor.provision.bundle import read_manifest

    manifest = read_manifest(path)
    checksums.verify(path)
    variables = {}
    if any((path / "wheels").glob("*.whl")):
        variables["source_wheelhouse"] = str(path / "wheels")
    if (path / "packages" / checksums.NAME).exists():
        variables["source_packages"] = str(path / "packages")
    return variables, manifest
