"""What provisioning installs and where from, without nodes: components, pins, sources, bundles, profiles, batches."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from epdoctor import compat
from epdoctor.cli.provision_order import make_wish
from epdoctor.config import Config
from epdoctor.exceptions import CatalogError, EpdoctorError, UsageError
from epdoctor.profiles import load_profile
from epdoctor.provision import checksums
from epdoctor.provision.bundle import GitSource, contents, read_manifest
from epdoctor.provision.components import choose, components
from epdoctor.provision.download import Machine, epdoctor_wheel, git_archive, this_machine, wheels
from epdoctor.provision.events import EventReader
from epdoctor.provision.pins import newer_than_known, newest, pins
from epdoctor.provision.result import RunResult
from epdoctor.provision.sources import parse_sources
from tests.git_lab import commit

ROOT = Path(__file__).parents[1]
ROLES = ROOT / "playbooks/roles"


def wish_values(**values: Any) -> dict[str, Any]:
    empty = {
        "profile": "",
        "extra": (),
        "restart_services": False,
        "vllm_version": "",
        "tags": (),
        "skip_tags": (),
    }
    return {**empty, "backend": "", "force": False, "max_num_batched_tokens": None, **values}


def names(**values: Any) -> list[str]:
    found = make_wish(wish_values(**values), Config()).choice.components
    return [component.name for component in found]


# ---------------------------------------------------------------- which components


def test_the_stack_is_installed_only_where_it_is_asked_for() -> None:
    machine = names()
    assert {"limits", "gpudirect", "env"} <= set(machine)
    assert not {"vllm", "deepep", "deepgemm", "pplx"} & set(machine)
    stack = names(backend="deepep_low_latency")
    assert stack.index("vllm") < stack.index("deepgemm") < stack.index("deepep") < stack.index("env")
    assert {"vllm", "deepep"} <= set(names(vllm_version="0.33.0"))
    assert "deepep" not in names(backend="nixl_ep")
    assert "pplx" not in names(vllm_version="0.16.0")
    assert names(tags=("pplx",)) == ["pplx"]


def test_what_is_left_out_says_why() -> None:
    left = choose("", (), (), stack=False).left_out
    assert "--backend" in left["deepep"]
    assert "0.17.0" in left["pplx"]
    assert set(choose("deepep_v2", (), ()).left_out) == {"pplx"}


def component_file(folder: Path, text: str) -> Path:
    path = folder / "roles/x/meta/component.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not a mapping"),
        ("{title: x, order: 1}", "checks is missing"),
        ("{title: x, order: one, checks: []}", "order must be a int"),
        ("{title: x, order: 1, checks: [], backend: []}", "unknown field backend, did you mean backends"),
        ("{title: x, order: 1, checks: [1]}", "checks must be a list of names"),
        ("{title: x, order: 1, checks: [], default: false}", "why_off goes with"),
        ("{title: x, order: 1, checks: [], why_off: no}", "why_off must be a str"),
    ],
)
def test_a_malformed_component_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CatalogError, match=r"component\.yml: ") as error:
        components(component_file(tmp_path, text))
    assert said in str(error.value)


def test_a_component_is_a_file(tmp_path: Path) -> None:
    (found,) = components(component_file(tmp_path, "{title: T, order: 5, checks: [a.b], stack: true}"))
    assert (found.name, found.title, found.stack, found.default) == ("x", "T", True, True)


# ---------------------------------------------------------------- pins


def test_pins_follow_vllm() -> None:
    assert pins()["versions_vllm"] == newest()
    assert pins("0.23.1")["versions_deepep_revision"].startswith("73b6ea4")
    assert pins("0.24.0")["versions_deepep_revision"].startswith("d4f41e4")
    assert pins("0.16.0")["versions_pplx_revision"].startswith("12cecfd")
    assert pins("0.17.0")["versions_pplx_revision"] == ""
    assert pins("0.19.1")["versions_deepgemm_revision"]
    assert pins("0.20.0")["versions_deepgemm_revision"] == ""
    assert newer_than_known("0.99").startswith("vLLM 0.99 is newer")
    assert newer_than_known(newest()) == ""
    for wrong, said in (("0.9.1", "before 0.12.0"), ("latest", "not a version")):
        with pytest.raises(UsageError, match=said):
            pins(wrong)


def test_pins_and_the_compat_tables_agree() -> None:
    rows = pins()["versions_vllm"], {row["vllm"]: row for row in release_rows()}
    assert rows[0] == compat.field("backends", "newest_vllm", str)
    for known in compat.field("vllm", "releases", list):
        found = pins(str(known["version"]))
        assert found["versions_torch"] == known["torch"]
        assert found["versions_deepep_revision"] == known["deepep_revision"]
        assert found["versions_nvshmem_build"] == known["nvshmem_build"]
        assert compat.version(found["versions_nixl"]) >= compat.version(known["nixl_min"])
        assert str(found["versions_cuda_major"]) == str(known["cuda"]).partition(".")[0]
    generations = compat.generations()
    through = pins()["versions_deepep_too_new_through"]
    assert through == compat.field("vllm", "deepep_2_5_unsupported_through", str)
    assert pins()["versions_deepep_too_new"] in generations
    for version, row in rows[1].items():
        torch = compat.torch_pins(row["torch"])
        if torch:
            assert row["nvshmem"] == torch["nvshmem"], version
            # Where DeepEP 2.x needs a newer NCCL than torch pins, the newer one is the pin.
            assert compat.version(row["nccl"]) >= compat.version(torch["nccl"]), version
        assert compat.version(row["nccl"]) >= compat.version(row["nccl_floor"]), version
        generation = generations["2.0" if row["deepep"].startswith("d4f41e4") else "1"]
        low, high = compat.version(generation.nvshmem_min), compat.version(generation.nvshmem_below)
        assert low <= compat.version(row["nvshmem"]) < high, version
        if generation.nccl_min:
            assert compat.version(row["nccl_floor"]) >= compat.version(generation.nccl_min), version


def release_rows() -> list[dict[str, Any]]:
    rows = yaml.safe_load((ROLES / "versions/defaults/main.yml").read_text())["versions_releases"]
    assert isinstance(rows, list)
    return rows


def test_rows_are_whole_and_newest_first() -> None:
    rows = release_rows()
    assert [row.keys() for row in rows] == [rows[0].keys()] * len(rows)
    versions = [compat.version(row["vllm"]) for row in rows]
    assert versions == sorted(versions, reverse=True)
    for row in rows:
        for name in ("deepep", "deepgemm", "pplx"):
            assert row[name] == "" or len(row[name]) == 40


def test_ansible_sees_the_same_pins_and_an_inventory_wins(tmp_path: Path) -> None:
    """One run: a node that the pins of --vllm reach, one whose inventory has pins of its own."""
    play = {"hosts": "all", "gather_facts": False, "roles": ["versions"], "tasks": []}
    shown = ("versions_vllm", "versions_deepep_revision", "versions_nccl", "versions_nixl", "versions_python")
    play["tasks"] = [{"ansible.builtin.debug": {"msg": {name: "{{ " + name + " }}" for name in shown}}}]
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "pins.json").write_text(json.dumps({"all": {"vars": {"versions_vllm": "0.29.0"}}}))
    (tmp_path / "site.ini").write_text("[nodes]\nplain\n[own]\nmine\n[own:vars]\nversions_nccl=2.99.1\n")
    argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-c", "local"]
    argv += ["-i", "pins.json", "-i", "site.ini", "play.yml"]
    env = {
        "ANSIBLE_ROLES_PATH": str(ROLES),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for part in done.stdout.split("ok: [")[1:]:
        node, _, rest = part.partition("] => ")
        if rest.startswith("{"):
            found[node] = json.JSONDecoder().raw_decode(rest)[0]["msg"]
    expected = {name: pins("0.29.0")[name] for name in shown}
    assert found["plain"] == expected
    assert found["mine"] == {**expected, "versions_nccl": "2.99.1"}


# ---------------------------------------------------------------- sources


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "a-1-py3-none-any.whl").write_bytes(b"a")
    return folder


def test_sources_become_variables(wheelhouse: Path) -> None:
    found = parse_sources(
        (f"wheelhouse={wheelhouse}", "git=https://git.site/mirrors/", "index=http://pypi.site/simple")
    )
    assert found.variables == {
        "source_wheelhouse": str(wheelhouse),
        "source_git_prefix": "https://git.site/mirrors/",
        "source_pip_index_url": "http://pypi.site/simple",
    }
    assert (
        parse_sources(("git=/srv/git/", "mirror=file:///srv/debs")).variables["source_git_prefix"]
        == "/srv/git/"
    )
    assert parse_sources(("git=git@git.site:mirrors/",)).variables


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("wheelhouse", "not KIND=PLACE"),
        ("wheelhose=/x", "did you mean wheelhouse"),
        ("wheelhouse=/no/such", "no such folder"),
        ("wheelhouse=.", "no wheel in it"),
        ("index=pypi.site", "not a URL"),
        ("index=https://user:secret@pypi.site/simple", "shows in the nodes' process lists"),
        ("mirror=https://x/$(reboot)", "no spaces, quotes"),
        ("packages=.", "SHA256SUMS: cannot be read"),
        ("bundle=.", "not a bundle"),
        ("mirror-key=/no/such", "no such file"),
    ],
)
def test_a_wrong_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r".") as error:
        parse_sources((word,))
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_a_folder_of_mirrors_is_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mirrors/openucx/ucx.git/objects").mkdir(parents=True)
    for word in ("mirrors", "mirrors/", f"{tmp_path}/mirrors"):
        assert parse_sources((f"git={word}",)).variables == {"source_git_prefix": f"{tmp_path}/mirrors/"}
    assert parse_sources(("git=https://git.site",)).variables == {"source_git_prefix": "https://git.site/"}
    assert parse_sources(("git=/on/the/node",)).variables == {"source_git_prefix": "/on/the/node/"}
    assert parse_sources(("git=git@git.site:",)).variables == {"source_git_prefix": "git@git.site:"}
    with pytest.raises(UsageError, match="this is one repository") as error:
        parse_sources(("git=mirrors/openucx/ucx.git",))
    assert error.value.hint
    with pytest.raises(UsageError, match="no such folder on this machine"):
        parse_sources(("git=mirors",))


def test_sources_of_one_kind_are_given_once(wheelhouse: Path) -> None:
    with pytest.raises(UsageError, match="given twice"):
        parse_sources((f"wheelhouse={wheelhouse}", f"wheelhouse={wheelhouse}"))


def test_checksums_are_held(wheelhouse: Path) -> None:
    checksums.write(wheelhouse)
    assert checksums.verify(wheelhouse) == 1
    assert parse_sources((f"wheelhouse={wheelhouse}",)).variables
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=wheelhouse, capture_output=True)
    assert sums.returncode == 0
    (wheelhouse / "b-1-py3-none-any.whl").write_bytes(b"b")
    with pytest.raises(UsageError, match="nobody vouches"):
        checksums.verify(wheelhouse)
    (wheelhouse / "b-1-py3-none-any.whl").unlink()
    (wheelhouse / "a-1-py3-none-any.whl").write_bytes(b"changed")
    with pytest.raises(UsageError, match="wrong checksum"):
        parse_sources((f"wheelhouse={wheelhouse}",))
    (wheelhouse / "a-1-py3-none-any.whl").unlink()
    with pytest.raises(UsageError, match="is missing"):
        checksums.verify(wheelhouse)


@given(st.text(max_size=200) | st.from_regex(r"[0-9a-f]{64}  [./a-z]{1,20}\n", fullmatch=True))
def test_a_checksum_file_of_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("sums")
    (folder / "SHA256SUMS").write_text(text, "utf-8")
    with contextlib.suppress(UsageError):
        assert all(
            not name.startswith("/") and ".." not in name.split("/") for name in checksums.read(folder)
        )


# ---------------------------------------------------------------- bundles


def test_what_a_bundle_holds() -> None:
    given = pins("0.16.0")
    found = {one.component: one for one in contents(components(), given)}
    assert found["vllm"].wheels[0] == "vllm==0.16.0"
    assert found["vllm"].dependencies
    (source,) = found["deepep"].sources
    assert source.revision == given["versions_deepep_revision"]
    assert source.name == f"deep-ep-{source.revision}"
    assert found["pplx"].sources
    assert found["limits"].empty
    newest_ones = {one.component: one for one in contents(components(), pins())}
    assert newest_ones["deepgemm"].empty
    assert newest_ones["pplx"].empty


def test_a_variable_reaches_the_bundle() -> None:
    (component,) = choose("", ("deepep",), ()).components
    (found,) = contents((component,), {**pins(), "deepep_revision": "v9", "deepep_git_url": "/srv/git/x.git"})
    assert found.sources == (GitSource("deep-ep-v9", "/srv/git/x.git", "v9"),)
    with pytest.raises(UsageError, match="cannot be the name"):
        contents((component,), {**pins(), "deepep_revision": "../../etc"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"vllm": "0.33.0", "schema": 99}',
        '{"vllm": "1", "schema": 1, "variables": {"x_y": 1}}',
        "\0",
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError):
        read_manifest(tmp_path)


def test_an_archive_has_the_submodules_of_a_mirror(tmp_path: Path) -> None:
    part, whole, out = tmp_path / "git/x/part", tmp_path / "git/x/whole", tmp_path / "out"
    for folder in (part, whole, out):
        folder.mkdir(parents=True)
    (part / "inner.txt").write_text("inner")
    (whole / "setup.py").write_text("")
    commit(part)
    revision = commit(whole, {"part": part})
    modules = (whole / ".gitmodules").read_text().replace(str(part), "https://github.com/x/part")
    (whole / ".gitmodules").write_text(modules)
    revision = commit(whole)
    source = GitSource(f"whole-{revision}", "https://github.com/x/whole", revision)
    archive = git_archive(source, out, f"{tmp_path}/git/")
    listed = subprocess.run(["tar", "tzf", archive], check=True, capture_output=True, text=True).stdout
    assert f"whole-{revision}/part/inner.txt" in listed
    assert ".git/" not in listed
    with pytest.raises(EpdoctorError, match="sources of gone"):
        git_archive(GitSource("gone", str(tmp_path / "nowhere"), "v1"), out)


def test_wheels_that_are_not_there_fail_with_pips_words(tmp_path: Path) -> None:
    empty = (tmp_path / "simple").as_uri()
    with pytest.raises(EpdoctorError, match="No matching distribution found for no-such-epdoctor-package"):
        wheels(
            ["no-such-epdoctor-package==1"],
            tmp_path,
            Machine("3.12", "aarch64"),
            dependencies=False,
            index=empty,
        )


def test_epdoctors_own_wheel_can_be_installed_again(tmp_path: Path) -> None:
    """From this checkout, and once more from what that wheel installs."""
    first = epdoctor_wheel(tmp_path)
    assert first.name.startswith("epdoctor-")
    target = tmp_path / "installed"
    argv = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(first),
    ]
    subprocess.run(argv, check=True)
    again = tmp_path / "again"
    again.mkdir()
    code = "import sys; from pathlib import Path; from epdoctor.provision.download import epdoctor_wheel; "
    code += "print(epdoctor_wheel(Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(again)], env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    second = tmp_path / "second"
    argv = [*argv[:-2], str(second), done.stdout.strip()]
    subprocess.run(argv, check=True)
    assert {p.relative_to(target) for p in target.rglob("*.yml")} == {
        p.relative_to(second) for p in second.rglob("*.yml")
    }


def test_this_machine_is_its_own_kind() -> None:
    assert this_machine().is_this
    assert not Machine("3.9", "aarch64").is_this


# ---------------------------------------------------------------- profiles


def test_a_profile_chooses_components_and_pins(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("provision: {components: [limits, gpudirect], variables: {versions_nccl: '2.99'}}\n")
    found = make_wish(wish_values(profile=str(path)), Config())
    assert [component.name for component in found.choice.components] == ["limits", "gpudirect"]
    assert found.pins == {"versions_nccl": "2.99"}
    child = tmp_path / "child.yaml"
    child.write_text("extends: site\nprovision: {variables: {limits_nofile_soft: 5}}\n")
    assert load_profile(str(child)).provision.components == ("limits", "gpudirect")
    assert load_profile(str(child)).provision.variables == {"versions_nccl": "2.99", "limits_nofile_soft": 5}
    assert names(profile="bring-up")[0] == "limits"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provision: [limits]", "takes components and variables"),
        ("provision: {components: [limit]}", "did you mean limits"),
        ("provision: {components: limits}", "must be a list"),
        ("provision: {variables: {limits_nofil_soft: 1}}", "did you mean limits_nofile_soft"),
        ("provision: {variables: {limits_nofile_soft: many}}", "it takes int"),
        ("provision: {variables: {gpudirect_method: x}}", "it takes auto, peermem, dmabuf"),
    ],
)
def test_a_wrong_provision_section_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text + "\n")
    with pytest.raises(CatalogError, match=r"site\.yaml: provision") as error:
        load_profile(str(path))
    assert said in str(error.value)


# ---------------------------------------------------------------- batches


def play(component: str) -> dict[str, Any]:
    return {"event": "playbook_on_play_start", "event_data": {"name": f"Component {component}"}}


def ran(component: str, node: str, kind: str = "runner_on_ok") -> dict[str, Any]:
    data = {"play": f"Component {component}", "host": node, "task": "x", "res": {"msg": "no"}}
    return {"event": kind, "event_data": data}


STATS = {"event": "playbook_on_stats", "event_data": {}}


def fed(result: RunResult, events: list[dict[str, Any]], percent: float = 50) -> RunResult:
    reader = EventReader(result, max_fail_percent=percent)
    for event in events:
        reader.feed(event)
    return result


def test_a_batch_that_was_never_begun_is_not_right() -> None:
    """Both nodes of the first batch fail, so Ansible begins no second one."""
    failed = [ran("limits", node, "runner_on_failed") for node in ("a", "b")]
    result = fed(RunResult(("a", "b", "c"), ("limits",)), [play("limits"), *failed, STATS])
    assert [result.state("limits", node) for node in ("a", "b", "c")] == ["failed", "failed", "not-tried"]


def test_the_others_of_a_batch_that_was_given_up_are_not_right() -> None:
    events = [play("limits"), *[ran("limits", node) for node in "abc"]]
    events += [ran("limits", node, "runner_on_failed") for node in "ab"]
    result = fed(RunResult(("a", "b", "c"), ("limits",)), [*events, STATS])
    assert result.state("limits", "c") == "not-tried"
    # Without batches nobody is given up for others.
    assert fed(RunResult(("a", "b", "c"), ("limits",)), [*events, STATS], 100).state("limits", "c") == "right"


def test_a_second_batch_opens_the_component_again() -> None:
    result = fed(RunResult(("a", "b"), ("limits",)), [play("limits"), ran("limits", "a"), play("limits")])
    assert result.state("limits", "b") == "not-tried"
    fed(result, [play("limits"), ran("limits", "b"), STATS])
    assert result.state("limits", "a") == result.state("limits", "b") == "right"
