"""Launches of case files: texts that are read as `epdoctor lint` reads them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epdoctor.facts import Node
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.launch.onto_nodes import place_servers
from epdoctor.launch.read import read_launch

_KEYS = {"files", "argv", "env_files", "vllm", "model_config", "nodes", "running"}


@contextmanager
def inside(folder: str | Path) -> Iterator[None]:
    # contextlib.chdir is of Python 3.11
    before = os.getcwd()  # noqa: PTH109 - to come back to
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def launch_of(given: dict[str, Any], nodes: Mapping[str, Node]) -> LaunchSet:
    """What a case's `launch` starts: files and env_files (name -> text), argv, vllm, model_config, running."""
    assert given.keys() <= _KEYS, f"unknown keys {given.keys() - _KEYS}"
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        for name, text in {**given.get("files", {}), **given.get("env_files", {})}.items():
            Path(name).write_text(text)
        if "running" in given:
            launch = LaunchSet(tuple(_process(row) for row in given["running"]), live=True)
        else:
            launch = read_launch(
                list(given.get("files", ())),
                argv=given.get("argv", ()),
                env_files=list(given.get("env_files", ())),
                vllm_version=str(given.get("vllm", "")),
            )
    if nodes:
        launch, _notes = place_servers(launch, nodes)
    return dataclasses.replace(launch, model_config=given.get("model_config"))


def _process(row: dict[str, Any]) -> Server:
    """A live process by hand: node, argv, libraries, version."""
    return dataclasses.replace(
        read_launch((), argv=row["argv"]).servers[0],
        name=f"{row['node']} pid 4711",
        kind="running",
        node=row["node"],
        libraries=row.get("libraries", {}),
        vllm_version=row.get("version", ""),
    )
