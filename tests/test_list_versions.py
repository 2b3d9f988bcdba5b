"""`epdoctor list versions`, and the one warning about tables that are too old."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest

from epdoctor import compat
from epdoctor.cli.check import stale_tables
from epdoctor.collect.record import Recording
from epdoctor.collect.store import parse_record, save
from epdoctor.exceptions import CatalogError
from epdoctor.facts.base import CollectOptions
from tests.test_site_checks import ROOT, epdoctor

DAY = date(2026, 11, 21)


def test_every_table_is_listed_with_its_date_and_source() -> None:
    text = epdoctor(ROOT, "list", "versions").stdout
    for name, content in compat.tables().items():
        assert f"{name.ljust(10)}  {content['as_of']}" in text
        assert content["source"].split()[0] in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-1] == "next: epdoctor list versions TABLE"


def test_a_named_table_is_shown_whole() -> None:
    text = epdoctor(ROOT, "list", "versions", "torch", "nvshmem").stdout
    assert "pins: torch 2.14.0, nccl 2.30.7, nvshmem 3.4.5" in text
    assert "qp_depth: default 1024" in text
    assert "backends" not in text


def test_json_has_the_tables() -> None:
    data = json.loads(epdoctor(ROOT, "list", "versions", "--format", "json").stdout)
    assert data.keys() == compat.tables().keys()
    assert data["nccl"]["as_of"] == str(compat.table("nccl")["as_of"])


def test_an_unknown_table_is_refused() -> None:
    done = epdoctor(ROOT, "list", "versions", "ncl")
    assert (done.returncode, "did you mean nccl" in done.stderr) == (2, True)


def test_a_table_is_old_after_180_days_and_not_before() -> None:
    assert compat.stale_warning({"nccl": DAY}, DAY + timedelta(days=180)) == ""
    text = compat.stale_warning({"nccl": DAY}, DAY + timedelta(days=181))
    assert "nccl of 2026-11-21" in text
    assert text.endswith("pip install --upgrade epdoctor")


def test_old_tables_are_one_line_oldest_first() -> None:
    dates = {"new": DAY, "b": DAY - timedelta(days=200), "a": DAY - timedelta(days=400)}
    text = compat.stale_warning(dates, DAY)
    assert "(a of 2025-10-17, b of 2026-05-05)" in text
    assert "\n" not in text


def test_a_run_is_judged_by_the_day_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "table_dates", lambda: {"nccl": DAY})
    assert stale_tables("2026-11-22T02:00:00Z") == []
    assert stale_tables("2020-01-01T00:00:00Z") == []
    assert len(stale_tables("2027-11-22T02:00:00Z")) == 1
    assert stale_tables("") == stale_tables("soon") == []


def test_the_report_warns_once(tmp_path: Path) -> None:
    record = parse_record((ROOT / "tests" / "records" / "h200x2.json").read_bytes(), "n1")
    save(
        tmp_path / "old.tar.gz",
        Recording("inventory.ini", CollectOptions(), "2031-01-01T00:00:00Z"),
        [record],
    )
    text = epdoctor(tmp_path, "check", "--from", "old.tar.gz").stdout
    assert text.count("compatibility tables older than 180 days") == 1
    assert "compatibility tables" not in epdoctor(tmp_path, "check", "--demo").stdout


def test_a_table_without_a_date_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "checks" / "compat", tmp_path / "compat")
    monkeypatch.setattr(compat, "data_dir", lambda name: tmp_path)
    compat.table.cache_clear()
    try:
        for text in ("as_of: soon\nsource: x\n", "source: x\n", "[]\n"):
            (tmp_path / "compat" / "nccl.yaml").write_text(text)
            with pytest.raises(CatalogError, match=r"nccl\.yaml"):
                compat.table("nccl")
    finally:
        compat.table.cache_clear()
