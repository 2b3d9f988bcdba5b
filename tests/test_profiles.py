"""Profiles: what is refused and how, what extending adds up to, what wins over what; the shipped ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from epdoctor.catalog import load_checks, select_checks
from epdoctor.cli.options import ChosenChecks, choose_checks, goal_from
from epdoctor.config import Config, load_config
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.model import Severity
from epdoctor.profiles import Profile, load_profile, regrade, shipped_profiles
from tests.test_site_checks import ROOT, epdoctor


def write(folder: Path, name: str, value: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(value))
    return str(path)


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_holds_and_changes_something(name: str) -> None:
    profile, checks = load_profile(name), load_checks()
    changed = regrade(profile, checks)
    chosen = select_checks(changed, profile.select, profile.ignore)
    assert profile.title
    assert 10 < len(chosen) < len(checks)
    for check_id in (*profile.severity, *profile.parameters):
        assert check_id in chosen, f"{name} regrades {check_id} and leaves it out"
        assert changed[check_id] != checks[check_id], f"{name} says of {check_id} what its file says"
    for word in profile.ignore:
        assert len(select_checks(changed, profile.select, set(profile.ignore) - {word})) > len(chosen), word


def test_the_prolog_is_done_in_five_seconds() -> None:
    assert (load_profile("prolog").timeout_s or 60) < 5
    started = time.monotonic()
    done = epdoctor(ROOT, "check", "--profile", "prolog")
    assert time.monotonic() - started < 5
    assert done.returncode in (0, 1, 3), done.stderr


def test_extending_adds_up(tmp_path: Path) -> None:
    write(
        tmp_path,
        "parent",
        {
            "select": ["gpu"],
            "ignore": ["gpu.mig-off"],
            "severity": {"gpu.ecc-clean": "error", "gpu.persistence-on": "info"},
            "with": {"host.nofile-enough": {"minimum": 1}},
            "backend": "deepep_v2",
            "timeout_s": 9,
        },
    )
    child = write(
        tmp_path,
        "child",
        {
            "extends": "parent",
            "select": ["rdma"],
            "ignore": ["rdma.rate-full"],
            "severity": {"gpu.ecc-clean": "info"},
        },
    )
    profile = load_profile(child)
    assert (profile.name, profile.select, profile.ignore) == (
        "child",
        ("gpu", "rdma"),
        ("gpu.mig-off", "rdma.rate-full"),
    )
    assert profile.severity["gpu.ecc-clean"]["default"] is Severity.INFO
    assert profile.severity["gpu.persistence-on"]["default"] is Severity.INFO
    assert (profile.backend, profile.timeout_s) == ("deepep_v2", 9.0)
    assert profile.parameters == {"host.nofile-enough": {"minimum": 1}}


def test_one_word_holds_for_every_back_end_and_a_map_for_those_it_names() -> None:
    checks = load_checks()
    assert checks["rdma.port-active"].severity_for("deepep_v2") is Severity.ERROR
    for given, expected in (
        ("info", {"": "info", "deepep_v2": "info", "allgather_reducescatter": "info"}),
        ({"nixl_ep": "info"}, {"": "warning", "deepep_v2": "error", "nixl_ep": "info"}),
        ({"default": "error"}, {"": "error", "deepep_v2": "error", "allgather_reducescatter": "error"}),
    ):
        profile = load_of({"severity": {"rdma.port-active": given}})
        check = regrade(profile, checks)["rdma.port-active"]
        assert {name: check.severity_for(name).value for name in expected} == expected


def load_of(value: Any) -> Profile:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_profile(write(Path(folder), "mine", value))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not a mapping"),
        (["gpu"], "not a mapping"),
        ({"selekt": ["gpu"]}, "unknown field selekt, did you mean select"),
        ({"select": "gpu"}, "select must be a list"),
        ({"ignore": [1]}, "ignore must be a list"),
        ({"extends": "nihgtly"}, "no profile 'nihgtly', did you mean nightly"),
        ({"extends": "./gone.yaml"}, "no such file"),
        ({"extends": "mine"}, "extends itself"),
        ({"severity": {"gpu.ecc-clean": "fatal"}}, "not error, warning or info"),
        ({"severity": {"gpu.ecc-clean": {"deepep": "error"}}}, "not a back end"),
        ({"severity": ["gpu.ecc-clean"]}, "severity must map"),
        ({"severity": {"gpu.ecc-cleen": "error"}}, "no check 'gpu.ecc-cleen', did you mean gpu.ecc-clean"),
        ({"with": {"host.nofile-enough": 3}}, "with must map"),
        ({"with": {"host.nofile-enough": {"minimun": 3}}}, "no parameter minimun, did you mean minimum"),
        ({"with": {"host.nofile-enough": {"minimum": "many"}}}, "must be"),
        ({"backend": "deepep"}, "not a back end"),
        ({"timeout_s": 1}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"select": ["gpus"]}, "no check, prefix or tag 'gpus'"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_files_name(tmp_path: Path, value: Any, reason: str) -> None:
    path = write(tmp_path, "mine", value)
    with pytest.raises(CatalogError, match=reason) as caught:
        regrade(load_profile(path), load_checks())
    assert str(caught.value).startswith(path)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("select: [gpu\nignore: ]\n")
    with pytest.raises(CatalogError, match=r"mine\.yaml:2"):
        load_profile(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["nihgtly", "gone.yaml", "../x"])
def test_an_unknown_profile_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        load_profile(name)


# ------------------------------------------------------------------------------------ what wins over what


def chosen(config: Config | None = None, **values: Any) -> ChosenChecks:
    given = {"select": (), "ignore": (), "profile": "", "site_checks": None, **values}
    return choose_checks(given, config or Config())


def categories(choice: ChosenChecks) -> set[str]:
    return {check.category for check in choice.checks.values()}


def test_without_any_choice_all_checks_count() -> None:
    choice = chosen()
    assert (choice.checks, choice.selected, choice.profile) == (load_checks(), False, "")


def test_select_wins_and_ignore_adds_up() -> None:
    config = Config(select=("gpu",), ignore=("gpu.mig-off",), profile="")
    assert categories(chosen(config)) == {"gpu"}
    assert "gpu.mig-off" not in chosen(config).checks
    assert categories(chosen(config, select=("rdma,time",))) == {"rdma", "time"}
    both = chosen(config, ignore=("gpu.ecc-clean",)).checks
    assert not {"gpu.mig-off", "gpu.ecc-clean"} & both.keys()
    assert chosen(config).selected


def test_a_named_profile_wins_over_the_configured_choice() -> None:
    config = Config(profile="nightly", select=("time",), ignore=("gpu.mig-off",))
    assert (chosen(config).profile, categories(chosen(config))) == ("nightly", {"time"})
    prolog = chosen(config, profile="prolog")
    assert prolog.profile == "prolog"
    assert "gpu.driver-loaded" in prolog.checks
    assert "gpu.mig-off" not in prolog.checks
    assert prolog.checks["gpu.free-of-strangers"].severity_for("") is Severity.ERROR
    assert categories(chosen(config, profile="prolog", select=("names",))) == {"names"}


@pytest.mark.parametrize(
    ("values", "config", "expected"),
    [
        ({"backend": "nixl_ep", "profile": "x"}, "deepep_v2", "nixl_ep"),
        ({"backend": None, "profile": "x"}, "deepep_v2", "moonep"),
        ({"backend": None, "profile": ""}, "deepep_v2", "deepep_v2"),
        ({"backend": None, "profile": ""}, "", "moonep"),
    ],
)
def test_whose_back_end_is_judged(values: dict[str, Any], config: str, expected: str) -> None:
    goal, _ = goal_from({"vllm_version": "", **values}, Config(backend=config), "moonep")
    assert goal.backend == expected


def test_configuration_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "epdoctor.toml"
    monkeypatch.setenv("EPDOCTOR_CONFIG", str(path))
    path.write_text('profile = "mine.yaml"\nselect = ["gpu"]\nignore = ["gpu.mig-off"]\n')
    config = load_config()
    assert (config.profile, config.select, config.ignore) == (
        str(tmp_path / "mine.yaml"),
        ("gpu",),
        ("gpu.mig-off",),
    )
    path.write_text('profile = "nightly"\n')
    assert load_config().profile == "nightly"
    for wrong in ("select = [1]\n", 'select = "gpu"\n', "profile = 3\n", 'checks = "site"\n'):
        path.write_text(wrong)
        with pytest.raises(UsageError, match=r"epdoctor\.toml"):
            load_config()


def test_the_command_line_takes_a_profile(tmp_path: Path) -> None:
    (tmp_path / "epdoctor.toml").write_text('profile = "bring-up"\n')
    report = json.loads(epdoctor(tmp_path, "check", "--demo", "--format", "json").stdout)
    assert report["selected"]
    assert "profile bring-up" in report["source"]
    assert not [f for f in report["findings"] if f["id"].startswith("vllm.")]
    done = epdoctor(tmp_path, "check", "--demo", "--profile", "nihgtly")
    assert (done.returncode, "did you mean nightly" in done.stderr) == (2, True)
    assert "prolog" in epdoctor(tmp_path, "list", "profiles").stdout


def test_nothing_of_it_is_imported_without_a_profile() -> None:
    code = (
        "import sys; sys.argv[1:] = ['check', '--demo', '--no-state']\n"
        "import epdoctor.__main__ as m, os\nos._exit = lambda c: None\nm.main()\n"
        "print('LOADED', sorted({'epdoctor.profiles'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("LOADED []"), done.stderr
