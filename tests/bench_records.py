"""Recorded runs of the ladder (tests/records/bench), as what the reports are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epdoctor.bench.results import LadderReport, LayerResult, Measurement, Suspect
from epdoctor.cli.bench import _next
from epdoctor.cli.options import NodeChoice
from epdoctor.model import Status

BLANK: dict[str, Any] = {
    "all_nodes": True, "inventory": (), "limit": "", "forks": 1, "timeout_s": 1.0, "become": False, "via": "",
    "transport": "fabric", "dynamic_inventory": False, "config": None,
}  # fmt: skip
FOLDER = Path(__file__).parent / "records/bench"


def recorded(name: str) -> LadderReport:
    """One of them by its file's name."""
    data = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    layers = []
    for layer in data["layers"]:
        measurements = [
            Measurement(**{**m, "status": Status(m["status"])}) for m in layer.pop("measurements")
        ]
        suspects = [Suspect(**one) for one in layer.pop("suspects")]
        causes = [(cause, title) for cause, title in layer.pop("causes", [])]
        status = Status(layer.pop("status"))
        layers.append(
            LayerResult(**layer, status=status, measurements=measurements, suspects=suspects, causes=causes)
        )
    budget_s = data.get("budget_s", 90.0)
    following = _next(layers, data["missing"], choice(all_nodes=len(data["nodes"]) > 1), budget_s)
    return LadderReport(
        tuple(data["nodes"]), layers, data["missing"], data["seconds"], budget_s, data["exit_code"],
        data["interrupted"], following, data.get("ended_at", "2026-11-22T08:00:00+00:00"),
    )  # fmt: skip


def choice(**given: Any) -> NodeChoice:
    """Nodes of an inventory that is found by itself, unless told otherwise."""
    return NodeChoice(**{**BLANK, **given})
