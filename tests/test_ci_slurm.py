"""The Slurm wrappers of docs/ci/slurm under a real slurmctld and slurmd: what drains, what is put back, what is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from epdoctor.model import Finding, Goal, NodeOutcome, Problem, Report, Severity, Status
from epdoctor.report.formats import Style, render
from tests.lab.slurm import SlurmCluster, unavailable
from tests.reports import check

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "docs" / "ci" / "slurm"
EPDOCTOR = Path(sys.executable).parent / "epdoctor"

PROFILE = """\
title: One check that the test can fail
select: [host.kernel-recent]
severity: {{host.kernel-recent: error}}
with: {{host.kernel-recent: {{minimum: '{minimum}'}}}}
timeout_s: 4
"""


def profile(folder: Path, *, fails: bool) -> Path:
    path = folder / "one.yaml"
    path.write_text(PROFILE.format(minimum="99.0" if fails else "2.6"))
    return path


def wrapper(folder: Path, name: str, **variables: str) -> Path:
    """A site's own script around ours, as docs/ci/README.md says: Slurm gives its scripts few variables."""
    path = folder / f"site-{name}"
    lines = [f"export {key}={value!r}" for key, value in variables.items()]
    path.write_text("\n".join(["#!/bin/bash", *lines, f"exec {SLURM / name}"]) + "\n")
    path.chmod(0o755)
    return path


def run_wrapper(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env}
    return subprocess.run([str(path)], env=clean, capture_output=True, text=True, timeout=60)


# ---------------------------------------------------------------- the prolog alone: any machine


def settings(folder: Path, *, fails: bool = False, **more: str) -> dict[str, str]:
    return {
        "EPDOCTOR": str(EPDOCTOR), "EPDOCTOR_PROFILE": str(profile(folder, fails=fails)),
        "EPDOCTOR_REPORTS": str(folder / "reports"), "EPDOCTOR_WAIVERS": str(folder / "waivers.yaml"), "EPDOCTOR_SECONDS": "30", **more,
    }  # fmt: skip


def test_prolog_ends_with_1_for_an_error_and_says_which(tmp_path: Path) -> None:
    done = run_wrapper(wrapper(tmp_path, "epdoctor-prolog", **settings(tmp_path, fails=True)))
    assert done.returncode == 1
    assert "CRITICAL - 1 error: host.kernel-recent" in done.stderr
    assert "NOT READY" in (tmp_path / "reports" / "prolog.txt").read_text()


def test_prolog_ends_with_0_where_all_is_well(tmp_path: Path) -> None:
    done = run_wrapper(wrapper(tmp_path, "epdoctor-prolog", **settings(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")


def test_prolog_takes_the_waivers_of_the_site(tmp_path: Path) -> None:
    (tmp_path / "waivers.yaml").write_text("- {check: host.kernel-recent, reason: known}\n")
    done = run_wrapper(wrapper(tmp_path, "epdoctor-prolog", **settings(tmp_path, fails=True)))
    assert done.returncode == 0


BROKEN = {
    "not there": None,
    "no such interpreter": "#!/no/such/python\n",
    "import fails": f"#!{sys.executable}\nimport no_such_module\n",
    "python ends with 2": f"#!{sys.executable} /no/such/file.py\n",
    "says critical, but ends otherwise": "#!/bin/sh\necho 'EPDOCTOR CRITICAL - 1 error: x'; exit 1\n",
    "ends with 2 and says nothing": "#!/bin/sh\nexit 2\n",
    "hangs": "#!/bin/sh\nexec sleep 60\n",
    "hangs and ignores TERM": "#!/bin/bash\ntrap '' TERM\nwhile :; do sleep 0.1; done\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_prolog_never_drains_for_our_own_trouble(kind: str, tmp_path: Path) -> None:
    program, text = tmp_path / "epdoctor", BROKEN[kind]
    if text is not None:
        program.write_text(text)
        program.chmod(0o755)
    set_ = settings(tmp_path, EPDOCTOR=str(program), EPDOCTOR_SECONDS="0.6")
    started = time.monotonic()
    done = run_wrapper(wrapper(tmp_path, "epdoctor-prolog", **set_))
    assert done.returncode == 0
    assert "nothing was checked" in done.stderr
    assert time.monotonic() - started < 5


def test_prolog_says_what_is_unknown_and_lets_the_job_run(tmp_path: Path) -> None:
    # A profile with a mistake in it is a usage error: UNKNOWN.
    bad = tmp_path / "bad.yaml"
    bad.write_text("select: [no.such-check]\n")
    done = run_wrapper(wrapper(tmp_path, "epdoctor-prolog", **settings(tmp_path, EPDOCTOR_PROFILE=str(bad))))
    assert done.returncode == 0
    assert "UNKNOWN" in done.stderr


def test_prolog_works_where_its_report_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    set_ = settings(tmp_path, fails=True, EPDOCTOR_REPORTS=str(tmp_path / "file" / "x"))
    assert run_wrapper(wrapper(tmp_path, "epdoctor-prolog", **set_)).returncode == 1


# ---------------------------------------------------------------- on a real Slurm


@dataclass
class Site:
    """A cluster whose slurm.conf names the wrappers."""

    cluster: SlurmCluster
    folder: Path

    def node(self, name: str) -> dict[str, str]:
        text = self.cluster.run(["scontrol", "show", "node", name, "--oneliner"]).stdout
        found = dict(re.findall(r"(\w+)=(\S*)", text))
        reason = re.search(r" Reason=(.*?)(?: Comment=|$)", text.strip())
        return {**found, "Reason": reason[1] if reason else ""}

    def wait(self, test: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < deadline, {name: self.node(name) for name in self.cluster.names}
            time.sleep(0.1)

    def health(self, node: str) -> subprocess.CompletedProcess[str]:
        return run_wrapper(self.folder / "site-epdoctor-health", SLURMD_NODENAME=node, SLURM_CONF=self.cluster.env["SLURM_CONF"])  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    missing = unavailable()
    if missing:
        if os.environ.get("EPDOCTOR_LAB") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    tmp_path.chmod(0o755)
    with SlurmCluster(2) as cluster:
        conf = Path(cluster.env["SLURM_CONF"])
        own = {**settings(tmp_path), "SLURM_CONF": str(conf)}
        prolog = wrapper(tmp_path, "epdoctor-prolog", **own)
        wrapper(tmp_path, "epdoctor-health", **own)
        conf.write_text(conf.read_text() + f"Prolog={prolog}\nPrologFlags=Alloc\n")
        assert cluster.run(["scontrol", "reconfigure"]).returncode == 0
        here = Site(cluster, tmp_path)
        here.wait(lambda: all(here.node(n).get("State", "").startswith("IDLE") for n in cluster.names))
        yield here


@pytest.mark.slurm
def test_a_job_starts_where_the_prolog_is_content_and_the_node_is_drained_where_not(site: Site) -> None:
    job = ["srun", "-N1", "-w", "node1", "true"]
    assert site.cluster.run(job).returncode == 0
    profile(site.folder, fails=True)
    done = site.cluster.run(["sbatch", "-N1", "-w", "node2", "-o", "/dev/null", "--wrap", "true"])
    assert done.returncode == 0, done.stderr
    site.wait(lambda: "DRAIN" in site.node("node2")["State"])
    assert "DRAIN" not in site.node("node1")["State"]


@pytest.mark.slurm
def test_a_hanging_epdoctor_does_not_drain(site: Site) -> None:
    hang = site.folder / "hang"
    hang.write_text("#!/bin/sh\nexec sleep 60\n")
    hang.chmod(0o755)
    wrapper(site.folder, "epdoctor-prolog", **settings(site.folder, EPDOCTOR=str(hang), EPDOCTOR_SECONDS="1"))
    assert site.cluster.run(["srun", "-N1", "-w", "node1", "true"]).returncode == 0
    assert site.node("node1")["State"].startswith("IDLE")


@pytest.mark.slurm
def test_health_drains_with_its_reason_and_undrains_what_it_drained(site: Site) -> None:
    assert site.health("node1").returncode == 0
    assert "DRAIN" not in site.node("node1")["State"]
    profile(site.folder, fails=True)
    assert site.health("node1").returncode == 0
    node = site.node("node1")
    assert "DRAIN" in node["State"]
    assert node["Reason"].startswith("epdoctor: 1 error: host.kernel-recent")
    assert "DRAIN" not in site.node("node2")["State"]
    site.health("node1")
    assert site.node("node1")["Reason"] == node["Reason"], "the second look changes nothing"
    profile(site.folder, fails=False)
    assert "undrained" in site.health("node1").stderr
    site.wait(
        lambda: site.node("node1")["State"].startswith("IDLE") and "DRAIN" not in site.node("node1")["State"]
    )
    assert site.cluster.run(["srun", "-N1", "-w", "node1", "true"]).returncode == 0


@pytest.mark.slurm
def test_health_leaves_what_others_drained(site: Site) -> None:
    site.cluster.run(
        ["scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=swap DIMM, epdoctor: no"]
    )
    before = site.node("node1")
    site.health("node1")  # well: must not put it back
    profile(site.folder, fails=True)
    site.health("node1")  # not well: the administrator's reason stays
    after = site.node("node1")
    assert "DRAIN" in after["State"]
    assert after["Reason"].split(" [")[0] == before["Reason"].split(" [")[0] == "swap DIMM, epdoctor: no"


@pytest.mark.slurm
def test_health_changes_nothing_where_it_cannot_tell(site: Site) -> None:
    profile(site.folder, fails=True)
    site.health("node1")
    assert "DRAIN" in site.node("node1")["State"]
    (site.folder / "one.yaml").write_text("select: [no.such-check]\n")
    done = site.health("node1")
    assert "stays as it is" in done.stderr
    assert "DRAIN" in site.node("node1")["State"], "unknown is not green"
    site.health("node2")
    assert "DRAIN" not in site.node("node2")["State"], "unknown is no finding"


@pytest.mark.slurm
def test_slurmd_runs_the_health_check_and_names_the_node(site: Site) -> None:
    """As HealthCheckProgram, not by hand: which node it is on comes from slurmd."""
    conf = Path(site.cluster.env["SLURM_CONF"])
    conf.write_text(
        conf.read_text()
        + f"HealthCheckProgram={site.folder / 'site-epdoctor-health'}\nHealthCheckInterval=6\nHealthCheckNodeState=ANY\n"
    )
    profile(site.folder, fails=True)
    site.cluster.run(["scontrol", "reconfigure"])
    site.wait(lambda: all("DRAIN" in site.node(n)["State"] for n in site.cluster.names), 90)
    assert all(site.node(n)["Reason"].startswith("epdoctor: ") for n in site.cluster.names)
    profile(site.folder, fails=False)
    site.wait(lambda: not any("DRAIN" in site.node(n)["State"] for n in site.cluster.names), 90)


@pytest.mark.slurm
def test_srun_leaves_out_the_nodes_that_failed(site: Site) -> None:
    """As docs/formats.md says it, and with a list that is empty."""
    bad = Problem("8 MiB", "unlimited")
    report = Report(
        Goal(multinode=True),
        [NodeOutcome("node1"), NodeOutcome("node2")],
        [Finding("gpu.a", Status.FAIL, Severity.ERROR, "node1", problems=(bad,))],
        {"gpu.a": check("gpu.a")},
    )
    (site.folder / "r.json").write_text("".join(render("json", report, Style())))
    argv = ["report", "--from", "r.json", "--format", "nagios", "--nodes-fail", "bad", "--nodes-pass", "good"]
    subprocess.run([str(EPDOCTOR), *argv], cwd=site.folder, check=False, timeout=60)
    for names, nodes in (("bad", {"node2"}), ("good", {"node1"}), ("/dev/null", {"node1", "node2"})):
        script = f'srun --exclude="$(paste -sd, {names})" -N1 printenv SLURMD_NODENAME'
        done = site.cluster.run(["sh", "-c", f"cd {site.folder} && {script}"])
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in nodes
