"""Check files: what is refused, with the file's name; selection; the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from epdoctor import compiled
from epdoctor.catalog import did_you_mean, load_checks, select_checks
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.rules import all_rules

GOOD: dict[str, Any] = {
    "id": "host.example",
    "title": "An example holds",
    "severity": "warning",
    "scope": "node",
    "rule": "sysctl_at_least",
    "with": {"key": "vm.max_map_count", "minimum": 65530},
    "why": "because",
    "by_hand": "sysctl vm.max_map_count",
    "fix": {"now": ["true"]},
    "references": ["https://example.org"],
    "since": "0.1",
}


def folder_with(tmp_path: Path, change: dict[str, Any], name: str = "example") -> Path:
    (tmp_path / "host").mkdir(exist_ok=True)
    value = {key: item for key, item in {**GOOD, **change}.items() if item is not None}
    (tmp_path / "host" / f"{name}.yaml").write_text(yaml.safe_dump(value))
    return tmp_path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_checks.cache_clear()


def test_a_good_file_loads_and_the_cache_gives_the_same(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {})
    first = load_checks(folder)
    load_checks.cache_clear()
    assert load_checks(folder) == first
    assert (tmp_path / "cache" / "epdoctor" / "checks-site.json").is_file()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"title": None}, "missing title"),
        ({"tittle": "x"}, "unknown field tittle"),
        ({"id": "host.other"}, "the file's place says"),
        ({"severity": "fatal"}, "severity"),
        ({"severity": {"deepep_v2": "error"}}, "no default"),
        ({"severity": {"default": "error", "deepep_v9": "error"}}, "not a back end"),
        ({"applies": {"backends": ["nope"]}}, "not a back end"),
        ({"rule": "sysctl_at_leest"}, "did you mean sysctl_at_least"),
        ({"with": {"kye": "x", "minimum": 1}}, "no parameter kye, did you mean key"),
        ({"with": {"key": "x"}}, "wants the parameter minimum"),
        ({"with": {"key": "x", "minimum": "many"}}, "must be"),
        ({"needs": ["gpus"]}, "unknown need gpus, did you mean gpu"),
        ({"fix": {"now": "true"}}, "list of texts"),
        ({"fix": {"action": "pray"}}, "fix.action"),
        ({"references": []}, "every fact has a source"),
        ({"scope": "cluster"}, "is for scope node"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = folder_with(tmp_path, change)
    with pytest.raises(CatalogError, match=reason) as caught:
        load_checks(folder)
    assert "example.yaml" in str(caught.value)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {})
    (folder / "host" / "example.yaml").write_text("id: x\n  - y: [\n")
    with pytest.raises(CatalogError, match=r"example\.yaml:2"):
        load_checks(folder)


def test_a_changed_file_is_seen_and_a_broken_cache_ignored(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {})
    load_checks(folder)
    (tmp_path / "cache" / "epdoctor" / "checks-site.json").write_text("{broken")
    load_checks.cache_clear()
    assert "host.example" in load_checks(folder)
    folder_with(tmp_path, {"title": "Another title, longer"})
    load_checks.cache_clear()
    assert load_checks(folder)["host.example"].title == "Another title, longer"


def test_an_unwritable_cache_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/epdoctor")
    assert "host.example" in load_checks(folder_with(tmp_path, {}))


def test_no_state_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_state_allowed", False)
    load_checks(folder_with(tmp_path, {}))
    assert not (tmp_path / "cache").exists()


def test_select_by_id_prefix_and_tag() -> None:
    checks = load_checks()
    some = next(iter(checks.values()))
    assert set(select_checks(checks, [some.id], [])) == {some.id}
    assert all(key.startswith("gpu.") for key in select_checks(checks, ["gpu"], []))
    assert some.id not in select_checks(checks, [], [some.id])
    with pytest.raises(UsageError, match="did you mean"):
        select_checks(checks, [some.id[:-1]], [])


def test_did_you_mean() -> None:
    assert did_you_mean("chek", ["check", "collect"]) == ", did you mean check?"
    assert did_you_mean("zzz", ["check"]) == ""


def test_the_shipped_catalogue() -> None:
    checks = load_checks()
    rules = {check.rule for check in checks.values()}
    assert len(checks) >= 45
    assert len(rules) >= 25
    assert rules == set(all_rules()), f"rules without a check: {set(all_rules()) - rules}"
    assert json.dumps([check.title for check in checks.values()])
