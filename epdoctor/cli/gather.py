"""What check and collect do alike: choose nodes, collect with progress, give back records."""

from __future__ import annotations

import platform
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from epdoctor.cli.options import NodeChoice, collect_options
from epdoctor.cli.terminal import Progress
from epdoctor.collect.record import Record, Recording, now_text
from epdoctor.collect.targets import Inventory, Target, this_machine
from epdoctor.exceptions import UsageError


@dataclass
class Gathered:
    """Records in inventory order, and what they belong to."""

    recording: Recording
    records: list[Record]
    warnings: list[str]
    interrupted: bool = False
    several: bool = False
    """Whether an inventory was used (also of one node)."""
    targets: tuple[Target, ...] = ()
    """The chosen nodes, in inventory order."""
    via: str = ""
    """--via with {node} in it."""


def _is_one_place(choice: NodeChoice) -> bool:
    """Without a list of nodes, and none needed: `--via 'docker exec -i worker'`."""
    named = "{node}" in choice.via or "{host}" in choice.via
    return bool(choice.via) and not named and not choice.inventory


def _place(via: str) -> tuple[str, str]:
    """What `--via` names in its last word that is no option, and the template with {node} in its stead."""
    words = shlex.split(via)
    last = max(at for at, word in enumerate(words) if at == 0 or not word.startswith("-"))
    return words[last], shlex.join([*words[:last], "{node}", *words[last + 1 :]])


def choose_nodes(choice: NodeChoice) -> Inventory:
    """Raises InventoryError or UsageError before any connection."""
    if _is_one_place(choice):
        return Inventory((Target(name=_place(choice.via)[0]),), "--via")
    if choice.all_nodes:
        from epdoctor.inventory import load_inventory

        return load_inventory(
            choice.inventory,
            limit=choice.limit,
            dynamic=choice.dynamic_inventory,
            configured=choice.config.inventory,
        )
    if sys.platform != "linux":
        raise UsageError(
            f"this machine runs {platform.system()}; epdoctor looks at Linux nodes",
            hint="epdoctor check --all-nodes -i inventory.ini",
        )
    return Inventory((this_machine(socket.gethostname() or "localhost"),), "this machine")


def gather(
    choice: NodeChoice,
    values: dict[str, Any],
    *,
    on_record: Callable[[Record], None] = lambda record: None,
    before: Callable[[Inventory, Recording], None] = lambda inventory, recording: None,
) -> Gathered:
    """Collect from every chosen node. Ctrl-C ends it with what there is."""
    inventory = choose_nodes(choice)
    names = [target.name for target in inventory.nodes]
    names += [
        target.host
        for target in inventory.nodes
        if target.host and target.host != target.name and target.connection != "local"
    ]
    several = len(inventory.nodes) > 1
    options = collect_options(values, choice.config, tuple(dict.fromkeys(names)) if several else ())
    recording = Recording(inventory.source, options, now_text())
    before(inventory, recording)
    from epdoctor.collect.session import Session

    progress = Progress(len(inventory.nodes))

    def watch(event: str, node: str) -> None:
        if event == "connecting":
            progress.running[node] = 0.0
            progress.draw()

    via = _place(choice.via)[1] if _is_one_place(choice) else choice.via
    session = Session(
        inventory.nodes,
        options,
        forks=choice.forks,
        timeout_s=choice.timeout_s,
        become=choice.become,
        via=via,
        transport=choice.transport,
        watcher=watch,
    )
    session.start()
    records: list[Record] = []
    interrupted = False
    stream = session.records()
    progress.draw()
    while True:
        try:
            record = next(stream, None)
            if record is None:
                break
            records.append(record)
            progress.running.pop(record.node, None)
            progress.done += 1
            progress.failed += bool(record.outcome.error)
            if record.outcome.slowest_probe_s > progress.slowest[2]:
                progress.slowest = (record.outcome.slowest_probe, record.node, record.outcome.slowest_probe_s)
            progress.draw()
            on_record(record)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            session.abort()
            stream = session.records()
    progress.clear()
    order = {target.name: index for index, target in enumerate(inventory.nodes)}
    records.sort(key=lambda record: order.get(record.node, len(order)))
    warnings = list(inventory.warnings)
    for record in records:
        warnings.extend(f"{record.node}: {text}" for text in record.outcome.warnings)
    return Gathered(
        recording, records, _fold_warnings(warnings), interrupted, choice.all_nodes, inventory.nodes, via
    )


def _fold_warnings(warnings: list[str]) -> list[str]:
    """The same warning of many nodes once."""
    from epdoctor.nodenames import fold

    by_text: dict[str, list[str]] = {}
    for warning in warnings:
        node, colon, text = warning.partition(": ")
        by_text.setdefault(text if colon else warning, []).append(node if colon else "")
    return [
        f"{fold([node for node in nodes if node])}: {text}" if any(nodes) else text
        for text, nodes in by_text.items()
    ]
