"""A site's executables: whatever they print or do, a finding or an honest "unknown"; and packages that bring checks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Goal, Problem
from epdoctor.plugins import plugin, verdict
from epdoctor.rules import NotApplicable
from tests.test_site_checks import ROOT, write_example

NODE = Node("gpu01", Source({"x.y": {"status": "ran", "stdout": "Grüße"}}), Goal(), CollectOptions())


def judge(folder: Path, script: str, limit_s: float = 5.0) -> list[Problem]:
    path = folder / "p"
    path.write_text(script)
    path.chmod(0o755)
    return list(plugin(NODE, run=str(path), time_limit_s=limit_s))


def test_it_reads_the_record_and_its_problem_is_the_finding(tmp_path: Path) -> None:
    script = (
        f"#!{sys.executable}\nimport json, sys\nr = json.load(sys.stdin)\n"
        "print(json.dumps([{'found': r['node'] + ' ' + r['probes']['x.y']['stdout'], 'severity': 'info'}]))\n"
    )
    (problem,) = judge(tmp_path, script)
    assert (problem.found, problem.severity and problem.severity.value) == ("gpu01 Grüße", "info")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('#!/bin/sh\necho \'{"skip": "no disk here"}\'\n', "no disk here"),
        ("#!/bin/sh\nexit 3\n", "exit 3"),
        ("#!/bin/sh\necho boom >&2; kill -9 $$\n", "killed by signal 9: boom"),
        ("#!/bin/sh\necho hello\n", "printed no JSON but 'hello'"),
        ("#!/bin/sh\n", "printed no JSON"),
        ("#!/bin/sh\nexec yes\n", "more than 1 MiB"),
        ("#!/bin/sh\necho '[{\"found\": 1}]'\n", "found"),
        ("#!/nowhere/interpreter\n", "No such file"),
    ],
)
def test_no_verdict_is_unknown_and_says_why(tmp_path: Path, script: str, words: str) -> None:
    with pytest.raises((Unmeasured, NotApplicable), match=words):
        judge(tmp_path, script)


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    script = f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/child; exec sleep 300\n"
    with pytest.raises(Unmeasured, match=r"no answer within 0\.3 s"):
        judge(tmp_path, script, 0.3)
    for pid in (tmp_path / "child").read_text().split():
        for _ in range(100):
            state = Path(f"/proc/{pid}/stat")
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.02)
        else:
            pytest.fail("the plugin's child outlived it")


def test_a_child_that_holds_its_output_delays_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    assert judge(tmp_path, "#!/bin/sh\nsleep 300 &\necho '[]'\n") == []
    assert time.monotonic() - began < 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["found", "problems", "skip", "unknown", "severity", "now", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_output_is_problems_skip_or_unknown(out: bytes) -> None:
    with contextlib.suppress(Unmeasured, NotApplicable):
        assert all(problem.found.strip() for problem in verdict(out, "plugins/p"))


def epdoctor(cwd: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(cwd / "lib")])
    return subprocess.run(
        [sys.executable, "-m", "epdoctor", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1", "EPDOCTOR_NO_STATE": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def install(folder: Path, target: str = "acme_epdoctor") -> Path:
    """What `pip install` leaves of a package with the entry point."""
    info = folder / "lib" / "acme_epdoctor-2026.11.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-epdoctor\nVersion: 2026.11\n")
    (info / "entry_points.txt").write_text(f"[epdoctor.checks]\nacme = {target}\n")
    write_example(folder)
    (folder / "site").rename(folder / "lib" / "acme_epdoctor")
    (folder / "lib" / "acme_epdoctor" / "__init__.py").write_text(
        "raise SystemExit('must not be imported')\n"
    )
    return folder / "lib" / "acme_epdoctor"


def test_an_installed_package_brings_its_checks_and_profiles(tmp_path: Path) -> None:
    install(tmp_path)
    listed = epdoctor(tmp_path, "list", "checks", "site")
    assert listed.stdout.count("site.") == 3, listed.stderr
    judged = epdoctor(tmp_path, "check", "--demo", "--profile", "site-night", "--select", "site", "-v")
    assert "✓ site 3" in judged.stdout, judged.stdout + judged.stderr
    assert epdoctor(tmp_path, "list", "checks", "site", EPDOCTOR_NO_PLUGINS="1").returncode == 2


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        ("no-package", ["acme-epdoctor (entry point acme)", "EPDOCTOR_NO_PLUGINS=1"]),
        ("no-plugin", ["image-build.yaml", "no executable plugins/image-build"]),
        ("not-executable", ["plugins/image-build: not executable (chmod +x"]),
        ("unused", ["plugins/other: no check uses it"]),
    ],
)
def test_a_broken_package_is_refused_by_name(tmp_path: Path, breaks: str, words: list[str]) -> None:
    folder = install(tmp_path, "acme_nothing" if breaks == "no-package" else "acme_epdoctor")
    program = folder / "plugins" / "image-build"
    if breaks == "no-plugin":
        program.unlink()
    elif breaks == "not-executable":
        program.chmod(0o644)
    elif breaks == "unused":
        other = folder / "plugins" / "other"
        other.write_text("#!/bin/sh\n")
        other.chmod(0o755)
    done = epdoctor(tmp_path, "check", "--demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
