"""The recipes of docs/ci fit what they are written for: schemas, shellcheck, and a run of what can run here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CI = ROOT / "docs" / "ci"
BIN = Path(sys.executable).parent


def tool(name: str) -> str:
    path = BIN / name
    if not path.is_file():
        pytest.skip(f"{name} is not installed")
    return str(path)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-actions", "github/action.yml"),
        ("vendor.github-workflows", "github/workflow.yml"),
        ("vendor.gitlab-ci", "gitlab/epdoctor.gitlab-ci.yml"),
    ],
)
def test_ci_files_fit_their_schema(schema: str, file: str, tmp_path: Path) -> None:
    argv = [tool("check-jsonschema"), "--no-cache", "--builtin-schema", schema]
    argv += ["--data-transform", "gitlab-ci"] if "gitlab" in schema else []
    # GitLab's schema hardly looks at hidden jobs: looked at as plain ones.
    text = (CI / file).read_text().replace("\n.epdoctor", "\nepdoctor").replace("extends: .", "extends: ")
    broken = (
        text.replace("runs:", "runz:").replace("jobs:", "jobz:").replace("when: always", "when: never-ever")
    )
    for name, content, code in (("whole.yml", text, 0), ("broken.yml", broken, 1)):
        (tmp_path / name).write_text(content)
        done = subprocess.run([*argv, str(tmp_path / name)], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (name, done.stdout)


def scripts() -> list[tuple[str, str]]:
    """(name, text) of every shell script, also of those inside YAML."""
    found = [(path.name, path.read_text()) for path in sorted((CI / "slurm").iterdir())]
    steps = load(CI / "github" / "action.yml")["runs"]["steps"]
    found += [(step["name"], "#!/bin/bash\n" + step["run"]) for step in steps]
    for name, job in load(CI / "gitlab" / "epdoctor.gitlab-ci.yml").items():
        text = "\n".join([*job.get("before_script", ()), *job.get("script", ())])
        if text:
            found.append((name, "#!/bin/sh\n" + text.replace(" $EPDOCTOR_LAUNCH", ' "$EPDOCTOR_LAUNCH"')))
    pod = load(CI / "kubernetes" / "lws-init-container.yaml")["spec"]["leaderWorkerTemplate"][
        "workerTemplate"
    ]
    found.append(("init container", "#!/bin/sh\n" + pod["spec"]["initContainers"][0]["command"][2]))
    return found


@pytest.mark.parametrize(("name", "text"), scripts(), ids=[name for name, _ in scripts()])
def test_scripts_pass_shellcheck(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(text)
    done = subprocess.run([tool("shellcheck"), str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_action_pastes_no_input_into_its_scripts() -> None:
    for step in load(CI / "github" / "action.yml")["runs"]["steps"]:
        assert "${{" not in step["run"], "an input in a script is code for whoever opens a pull request"


# ---------------------------------------------------------------- the action's second step, run as GitHub would


def run_action(tmp_path: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    step = load(CI / "github" / "action.yml")["runs"]["steps"][1]
    venv = tmp_path / "temp" / "epdoctor" / "bin"
    venv.mkdir(parents=True)
    for name in ("python", "epdoctor"):
        (venv / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(BIN / name))} "$@"\n')
        (venv / name).chmod(0o755)
    env = {
        **os.environ, "RUNNER_TEMP": str(tmp_path / "temp"), "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "COMMAND": "lint", "ARGS": "", "REPORTS": "reports",
        "FAIL_ON_UNKNOWN": "true", **inputs,
    }  # fmt: skip
    script = tmp_path / "step.sh"
    script.write_text(step["run"])
    argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]  # docs.github.com: shell: bash
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    output = tmp_path / "output"
    pairs = dict(line.split("=", 1) for line in output.read_text().splitlines()) if output.exists() else {}
    return done.returncode, done.stdout + done.stderr, pairs


def test_the_action_fails_for_a_broken_launch(tmp_path: Path) -> None:
    (tmp_path / "my node.sh").write_text(
        "vllm serve deepseek-ai/DeepSeek-V3 --enable-expert-parallel --all2all-backend pplx\n"
    )
    code, text, outputs = run_action(tmp_path, ARGS="'my node.sh' --ignore '$(touch hacked)'")
    assert code == 2, "an argument is text"
    assert not (tmp_path / "hacked").exists()
    for path in (tmp_path / "temp" / "epdoctor" / "bin").iterdir():
        path.unlink()
    (tmp_path / "temp" / "epdoctor" / "bin").rmdir()
    code, text, outputs = run_action(tmp_path, ARGS="'my node.sh'")
    assert code == 1, text
    assert "::error file=my node.sh,line=1" in text
    assert outputs == {"exit-code": "1", "reports": "reports"}
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {
        "report.json",
        "report.sarif",
        "report.xml",
    }
    assert "launch.backend-exists" in (tmp_path / "summary").read_text()


# ---------------------------------------------------------------- Kubernetes


def pods() -> list[tuple[str, dict[str, Any]]]:
    job = load(CI / "kubernetes" / "preflight-job.yaml")["spec"]["template"]["spec"]
    template = load(CI / "kubernetes" / "lws-init-container.yaml")["spec"]["leaderWorkerTemplate"][
        "workerTemplate"
    ]
    return [("job", job), ("lws", template["spec"])]


def test_manifests_fit_the_api() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    version = validate.latest_version()
    job = load(CI / "kubernetes" / "preflight-job.yaml")
    validate.validate(job, version, strict=True)
    # LeaderWorkerSet is a custom resource; what it holds is the API's own pod template.
    for _, spec in pods():
        validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}, version, strict=True)  # fmt: skip
    job["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(job, version, strict=True)


def test_lws_has_the_fields_of_its_custom_resource() -> None:
    """sigs.k8s.io/lws api/leaderworkerset/v1: LeaderWorkerSetSpec and LeaderWorkerTemplate."""
    lws = load(CI / "kubernetes" / "lws-init-container.yaml")
    assert lws["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert set(lws["spec"]) <= {
        "replicas",
        "leaderWorkerTemplate",
        "rolloutStrategy",
        "startupPolicy",
        "networkConfig",
    }
    template = lws["spec"]["leaderWorkerTemplate"]
    assert set(template) <= {"leaderTemplate", "workerTemplate", "size", "restartPolicy", "subGroupPolicy"}
    assert template["restartPolicy"] in ("RecreateGroupOnPodRestart", "None")


def test_the_init_container_sees_what_the_worker_sees() -> None:
    spec = dict(pods())["lws"]
    init, worker = spec["initContainers"][0], spec["containers"][0]
    for key in ("image", "securityContext", "resources", "volumeMounts", "env"):
        assert init[key] == worker[key], key


INIT = [
    ("EPDOCTOR CRITICAL - 1 error: x | errors=1", 2, 1),
    ("EPDOCTOR UNKNOWN - 1 unknown | errors=0", 3, 0),
    ("EPDOCTOR OK - nothing found", 0, 0),
    ("", 2, 0),
    ("Traceback", 1, 0),
]


@pytest.mark.parametrize(("line", "code", "ends"), INIT)
def test_the_init_container_stops_the_pod_for_errors_only(
    line: str, code: int, ends: int, tmp_path: Path
) -> None:
    script = dict(pods())["lws"]["initContainers"][0]["command"][2]
    program = tmp_path / "epdoctor"
    program.write_text(f"#!/bin/sh\necho {shlex.quote(line)}\nexit {code}\n")
    program.chmod(0o755)
    script = script.replace("/opt/epdoctor/bin/epdoctor", str(program))
    assert subprocess.run(["/bin/sh", "-c", script], timeout=30).returncode == ends


def test_the_init_container_with_the_real_program(tmp_path: Path) -> None:
    """Its standard error is a pipe in a pod; the whole report stands there, and errors stop the pod."""
    script = dict(pods())["lws"]["initContainers"][0]["command"][2]
    program = tmp_path / "epdoctor"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "EPDOCTOR_NO_STATE": "1"}
    for select, ends, said in (("host", 1, "NOT READY"), ("time", 0, "PASS")):
        demo = f'exec {shlex.quote(sys.executable)} -m epdoctor "$@" --demo --select {select}'
        program.write_text(f"#!/bin/sh\n{demo}\n")
        program.chmod(0o755)
        argv = ["/bin/sh", "-c", script.replace("/opt/epdoctor/bin/epdoctor", str(program))]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == ends, done.stderr
        assert said in done.stderr


# ---------------------------------------------------------------- pre-commit


def test_the_hook_lints_the_launch_of_a_commit(tmp_path: Path) -> None:
    """With pre-commit itself in a repository of its own; `language: system`, since no index is asked in tests."""
    pre_commit = tool("pre-commit")
    assert subprocess.run([pre_commit, "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")], timeout=60).returncode == 0  # fmt: skip
    (hook,) = load(ROOT / ".pre-commit-hooks.yaml")
    env = {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PRE_COMMIT_HOME": str(tmp_path / "home"),
        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
    }  # fmt: skip
    repo = tmp_path / "repo"
    repo.mkdir()

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, cwd=repo, env=env, capture_output=True, text=True, timeout=60)

    assert run("git", "init", "-q").returncode == 0
    config = {
        "repos": [{"repo": "local", "hooks": [{**hook, "language": "system", "files": r"^deploy/.*\.sh$"}]}]
    }
    (repo / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    (repo / "deploy").mkdir()
    (repo / "notes.sh").write_text("echo this starts no vLLM\n")
    launch = repo / "deploy" / "node0.sh"
    launch.write_text("vllm serve deepseek-ai/DeepSeek-V3 --enable-expert-parallel --all2all-backend pplx\n")
    run("git", "add", "-A")
    done = run(pre_commit, "run", "--all-files")
    assert done.returncode == 1, done.stdout
    assert "launch.backend-exists" in done.stdout
    launch.write_text("vllm serve deepseek-ai/DeepSeek-V3 --enable-expert-parallel -tp 8\n")
    done = run(pre_commit, "run", "--all-files")
    assert "launch.backend-exists" not in done.stdout
