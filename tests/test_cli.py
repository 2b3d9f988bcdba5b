"""The command line as its user meets it: exit codes, streams, bad input, what is written where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).parent.parent
ALL = ["gpu01", "gpu02", "gpu03", "gpu04"]
DEMO_FAULTS = {
    "drift.nccl-version": ["gpu03"],
    "gpu.nvlinks-up": ["gpu02"],
    "gpudirect.memory-registrable": ["gpu03"],
    "host.memlock-unlimited": ["gpu02"],
    "names.own-name-not-loopback": ["gpu04"],
    "nvshmem.qp-depth-fits-tokens": ALL,
    "nvshmem.version-fits-deepep": ["gpu01"],
    "rdma.phys-link-up": ["gpu04"],
}
DEMO_CONSEQUENCES = {
    "drift.driver-flavour": ["gpu03"],
    "drift.memlock": ["gpu02"],
    "drift.nvshmem-version": ["gpu01"],
}
"""The same faults seen as a difference between nodes."""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A clean user: own XDG folders, no configuration."""
    keep = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH") if key in os.environ}
    return {
        **keep,
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }


def epdoctor(
    env: dict[str, str], *argv: str, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "epdoctor", *argv],
        env={**env, **extra}, cwd=cwd or env["HOME"].rpartition("/")[0], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_version_and_help(env: dict[str, str]) -> None:
    assert epdoctor(env, "--version").stdout.startswith("epdoctor 0.")
    help_text = epdoctor(env, "--help")
    assert help_text.returncode == 0
    assert "check" in help_text.stdout


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["list", "backends"]])
def test_nothing_heavy_is_imported(env: dict[str, str], argv: list[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {argv!r}\n"
        "import epdoctor.__main__ as m, atexit, os\n"
        "os._exit = lambda c: None\n"
        "m.main()\n"
        "heavy = {'fabric', 'paramiko', 'ansible', 'ansible_runner', 'pynvml', 'rich'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.stdout.strip().endswith("HEAVY []")


def test_this_machine(env: dict[str, str], tmp_path: Path) -> None:
    done = epdoctor(env, "check", "--format", "json")
    assert done.returncode in (0, 1, 3), done.stderr
    report = json.loads(done.stdout)
    validate(report)
    assert report["exit_code"] == done.returncode
    assert len(report["nodes"]) == 1
    assert report["nodes"][0]["reached"]
    assert not [f for f in report["findings"] if f["status"] == "error"]
    kept = list((tmp_path / "state" / "epdoctor" / "recordings").glob("*.tar.gz"))
    assert len(kept) == 1
    again = json.loads(epdoctor(env, "check", "--format", "json", "--from", str(kept[0])).stdout)
    assert comparable(again) == comparable(report)


def comparable(report: dict[str, Any]) -> Any:
    rows = [
        {key: value for key, value in finding.items() if key != "seconds"} for finding in report["findings"]
    ]
    return sorted(json.dumps(row, sort_keys=True) for row in rows), report["readiness"], report["exit_code"]


def validate(report: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "epdoctor" / "report" / "report_schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(report)


def test_no_state_writes_nothing(env: dict[str, str], tmp_path: Path) -> None:
    epdoctor(env, "check", "--no-state")
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "home").exists()


def test_only_ten_recordings_are_kept(env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "state" / "epdoctor" / "recordings"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"2020010{number % 10}T00000{number // 10}-1.tar.gz").write_bytes(b"old")
    epdoctor(env, "check")
    assert len(list(folder.glob("*.tar.gz"))) == 10


def test_collect_and_judge_again(env: dict[str, str], tmp_path: Path) -> None:
    for target in ("here.tar.gz", "folder"):
        done = epdoctor(env, "collect", "-o", str(tmp_path / target))
        assert done.returncode == 0, done.stderr
        assert f"next: epdoctor check --from {tmp_path / target}" in done.stdout
        judged = epdoctor(env, "check", "--from", str(tmp_path / target), "--format", "json")
        validate(json.loads(judged.stdout))
    refused = epdoctor(env, "collect", "-o", str(tmp_path / "x.zip"))
    assert refused.returncode == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["chek"], ["did you mean check"]),
        (["check", "--select", "gpu.ecc-cleen"], ["gpu.ecc-cleen", "did you mean gpu.ecc-clean"]),
        (
            ["check", "--backend", "deepep_low_latncy"],
            ["deepep_low_latncy", "did you mean deepep_low_latency"],
        ),
        (["check", "--all-nodes"], ["no inventory"]),
        (["check", "-i", "absent.ini"], ["absent.ini", "no such file"]),
        (["check", "--from", "absent.tar.gz"], ["absent.tar.gz", "no such recording"]),
        (["check", "--demo", "--all-nodes"], ["do not go with"]),
        (["check", "--env-file", "bad.env"], ["bad.env:2", "not KEY=VALUE"]),
        (["check", "-o", "/absent/x.json"], ["/absent/x.json", "cannot be written"]),
        (["check", "-o", "jsn=x.json"], ["jsn", "did you mean json"]),
        (["check", "-o", "json=x", "-o", "text=x"], ["two formats on one file"]),
        (["check", "--via", "podman exec -i n1", "-i", "n1,"], ["no {node}"]),
        (["check", "--via", "'unbalanced"], ["--via"]),
        (["check", "-i", "broken.ini"], ["broken.ini"]),
        (["check", "-i", "good.ini", "--limit", "nope"], ["nope"]),
        (["check", "--forks", "0"], ["--forks"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_exit_2_with_one_sentence(
    env: dict[str, str], tmp_path: Path, argv: list[str], words: list[str]
) -> None:
    (tmp_path / "bad.env").write_text("A=1\nnot a setting\n")
    (tmp_path / "broken.ini").write_text("[nodes\nn1\n")
    (tmp_path / "good.ini").write_text("[nodes]\nn1 ansible_host=127.0.0.1\n")
    done = epdoctor(env, *argv, cwd=tmp_path)
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_configuration_file(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "epdoctor.toml").write_text('bakend = "deepep_v2"\n')
    done = epdoctor(env, "check", cwd=tmp_path)
    assert (done.returncode, "did you mean backend" in done.stderr) == (2, True)
    (tmp_path / "epdoctor.toml").write_text('backend = "deepep_v2"\n[rdma]\ncompute_hcas = "mlx5_0"\n')
    done = epdoctor(env, "check", "--demo", "--format", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["goal"]["backend"] == "deepep_v2"
    (tmp_path / "epdoctor.toml").write_text("forks = [\n")
    assert epdoctor(env, "check", cwd=tmp_path).returncode == 2


def test_the_demo_has_its_eight_planted_faults(env: dict[str, str]) -> None:
    done = epdoctor(env, "check", "--demo", "--format", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    validate(report)
    failed: dict[str, list[str]] = {}
    for finding in report["findings"]:
        if finding["status"] == "fail" and finding["severity"] != "info":
            failed.setdefault(finding["id"], []).extend(finding["nodes"])
    assert {key: sorted(nodes) for key, nodes in failed.items()} == DEMO_FAULTS | DEMO_CONSEQUENCES


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_text_fits_the_width_and_is_plain_when_piped(env: dict[str, str], width: str) -> None:
    done = epdoctor(env, "check", "--demo", COLUMNS=width)
    assert "\x1b" not in done.stdout
    commands = re.compile(r"^    (now|for good|by hand|          )")
    for line in done.stdout.splitlines():
        if not commands.match(line) and not line.startswith(("next", "serve now")):
            assert len(line) <= int(width), line
    assert done.stdout.splitlines()[-1].startswith("next ")


def test_ascii_fallback(env: dict[str, str]) -> None:
    done = epdoctor(env, "check", "--demo", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    marks = {c for c in done.stdout if ord(c) > 127}
    assert not marks, {unicodedata.name(c) for c in marks}


def test_verbose_shows_evidence_and_what_does_not_apply(env: dict[str, str]) -> None:
    short = epdoctor(env, "check", "--demo").stdout
    long = epdoctor(env, "check", "--demo", "-v").stdout
    assert len(long) > len(short)
    assert "does not apply" in long


def test_outputs(env: dict[str, str], tmp_path: Path) -> None:
    done = epdoctor(env, "check", "--demo", "-o", f"json={tmp_path}/a.json", "-o", f"text={tmp_path}/a.txt")
    assert done.returncode == 1
    validate(json.loads((tmp_path / "a.json").read_text()))
    assert (tmp_path / "a.txt").read_text().splitlines()[-1].startswith("next ")
    assert "NOT READY" in done.stdout
    done = epdoctor(env, "check", "--demo", "--format", "json", "-o", f"{tmp_path}/b.json")
    assert done.stdout == ""
    validate(json.loads((tmp_path / "b.json").read_text()))


def test_select_ignore_and_fail_on(env: dict[str, str]) -> None:
    done = epdoctor(env, "check", "--demo", "--select", "gpudirect", "--format", "json")
    assert {f["id"].partition(".")[0] for f in json.loads(done.stdout)["findings"]} == {"gpudirect"}
    done = epdoctor(
        env, "check", "--demo", "--select", "gpu.nvlinks-up", "--format", "json", "--fail-on", "warning"
    )
    assert done.returncode == 1


def test_removed_backend_says_what_vllm_runs_instead(env: dict[str, str]) -> None:
    done = epdoctor(env, "check", "--demo", "--backend", "pplx", "--format", "json")
    report = json.loads(done.stdout)
    assert report["goal"]["backend"] == "allgather_reducescatter"
    assert any("pplx" in warning for warning in report["warnings"])


def test_list(env: dict[str, str]) -> None:
    done = epdoctor(env, "list", "checks", "gpudirect")
    assert "gpudirect.memory-registrable" in done.stdout
    assert json.loads(epdoctor(env, "list", "checks", "--format", "json").stdout)
    assert "deepep_low_latency" in epdoctor(env, "list", "backends").stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("epdoctor che", "plain,check"),
        ("epdoctor check --backend deepep_l", "plain,deepep_low_latency"),
        ("epdoctor check --select gpu.nvm", "plain,gpu.nvml-answers"),
    ],
)
def test_shell_completion(env: dict[str, str], words: str, answer: str) -> None:
    code = "import sys; sys.argv[0] = 'epdoctor'; from epdoctor.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "_EPDOCTOR_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == answer
