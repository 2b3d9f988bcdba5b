"""Facts about software: processes, Python environments, libraries, environment variables, launches."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, environment, launch, libraries, processes, python_env
from epdoctor.facts.base import CollectOptions, Script, Source, require
from epdoctor.model import Goal

PROBES = Path(processes.__file__).parent.parent / "probes"


def ran(*rows: list[Any]) -> dict[str, Any]:
    return {"status": "ran", "rc": 0, "seconds": 0.01, "data": list(rows)}


def node(probes: dict[str, Any], *, goal: Goal | None = None, env_file: str = "") -> Node:
    return Node("n1", Source(probes, root=True), goal or Goal(), CollectOptions(env_file_text=env_file))


def run_script(probe: Script, **changed: Any) -> dict[str, Any]:
    """Run a probe script here, as the agent does in its child."""
    shared = types.ModuleType("software.py")
    exec(compile((PROBES / "software.py").read_text(), "software.py", "exec"), shared.__dict__)
    sys.modules["software.py"] = shared
    rows: list[list[Any]] = []
    scope = {
        "PARAMS": {**probe.params, **changed},
        "emit": lambda *row: rows.append(list(row)),
        "__name__": "probe",
    }
    try:
        exec(compile((PROBES / probe.script).read_text(), probe.script, "exec"), scope)
    finally:
        del sys.modules["software.py"]
    return ran(*rows)


def script_of(module: Any) -> Script:
    (probe,) = module.probes(CollectOptions())
    assert isinstance(probe, Script)
    return probe


@pytest.fixture
def fake_vllm(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like `vllm serve`, with secrets on its command line and in its environment."""
    program = tmp_path / "venv" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text("import time\ntime.sleep(60)\n")
    argv = [
        sys.executable,
        str(program),
        "serve",
        "m",
        "--api-key",
        "s3cret",
        "--max-num-batched-tokens",
        "4k",
    ]
    values = {
        "PATH": "/usr/bin", "NCCL_DEBUG": "INFO", "VLLM_API_KEY": "s3cret", "HOME": "/root",
        "http_proxy": "http://me:s3cret@proxy:3128", "AWS_SECRET_ACCESS_KEY": "s3cret",
    }  # fmt: skip
    process = subprocess.Popen(argv, env=values)
    deadline = time.monotonic() + 10
    while b"serve" not in Path(f"/proc/{process.pid}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_scan_finds_a_server_and_sends_no_secret(fake_vllm: subprocess.Popen[bytes]) -> None:
    record = run_script(script_of(processes))
    assert "s3cret" not in repr(record)
    facts = processes.parse(Source({"processes.scan": record}))
    server = next(process for process in facts.workers if process.pid == fake_vllm.pid)
    assert server.role == "serve"
    assert server.uid == os.getuid()
    assert require(server.environ) == {
        "NCCL_DEBUG": "INFO", "VLLM_API_KEY": "***", "http_proxy": "http://***@proxy:3128",
    }  # fmt: skip
    assert launch.parse_options(server.cmdline)["max-num-batched-tokens"] == "4k"
    assert server.limits["nofile"].soft is None or server.limits["nofile"].soft > 0
    assert server.started_s is not None
    assert abs(server.started_s - time.time()) < 120


def test_psutil_and_proc_tell_the_same(
    fake_vllm: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry() -> dict[str, Any]:
        rows = run_script(script_of(processes))["data"]
        found = [row[1] for row in rows if row[0] == "process" and row[1]["pid"] == fake_vllm.pid]
        assert len(found) == 1
        return {key: value for key, value in found[0].items() if key != "started_s"} | {
            "started": abs(found[0]["started_s"] - time.time()) < 120
        }

    pytest.importorskip("psutil")
    with_psutil = entry()
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert entry() == with_psutil


@pytest.mark.parametrize(
    ("argv", "role"),
    [
        (["python3", "/opt/venv/bin/vllm", "serve", "m"], "serve"),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], "serve"),
        (["vllm", "serve", "m"], "serve"),
        (["VLLM::EngineCore_DP0"], "worker"),
        (["ray::RayWorkerWrapper.execute_method"], "worker"),
        (["bash", "-c", "vllm serve m"], ""),
        (["grep", "vllm serve"], ""),
        (["vim", "/opt/vllm/entrypoints/api.py"], ""),
        (["python3", "/opt/venv/bin/vllm", "bench", "serve"], ""),
        (["python3", "-c", "import vllm"], ""),
        (["python3"], ""),
        ([], ""),
    ],
)
def test_role_of_a_command_line(argv: list[str], role: str) -> None:
    scope: dict[str, Any] = {}
    exec((PROBES / "software.py").read_text(), scope)
    assert scope["vllm_role"](b"\0".join(word.encode() for word in argv)) == role


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--api-key", "a", "b", "--port", "1"], ["--api-key", "***", "***", "--port", "1"]),
        (["--api-key=a"], ["--api-key=***"]),
        (["--max-num-batched-tokens", "8192"], ["--max-num-batched-tokens", "8192"]),
        (["--tokenizer", "t", "--hf-token", "x"], ["--tokenizer", "t", "--hf-token", "***"]),
        (["HF_TOKEN=x", "redis://u:p@h:1"], ["HF_TOKEN=***", "redis://***@h:1"]),
        (['{"api_key": "x", "kv_role": "kv_both"}'], ['{"api_key": "***", "kv_role": "kv_both"}']),
    ],
)
def test_secrets_are_blanked(argv: list[str], shown: list[str]) -> None:
    scope: dict[str, Any] = {}
    exec((PROBES / "software.py").read_text(), scope)
    assert scope["blank_argv"](argv) == shown


def process_row(pid: int, **changed: Any) -> list[Any]:
    entry = {"pid": pid, "ppid": 1, "role": "serve", "comm": "vllm", "cmdline": ["vllm", "serve", "m"],
             "environ": {}, "environ_state": "read"}  # fmt: skip
    return ["process", {**entry, **changed}]


def scan(*rows: list[Any], session: dict[str, str] | None = None) -> dict[str, Any]:
    return {"processes.scan": ran(["session", session or {}], ["vllm_count", len(rows)], *rows)}


def test_titled_worker_has_its_launchers_environment() -> None:
    """setproctitle 1.3.7 left "P0" and NUL bytes in /proc/PID/environ."""
    launcher = process_row(10, environ={"NCCL_DEBUG": "WARN"})
    worker = process_row(
        11, ppid=10, role="worker", cmdline=["VLLM::Worker_TP0"], environ_state="overwritten"
    )
    orphan = process_row(12, ppid=1, role="worker", cmdline=["VLLM::Worker_TP1"], environ_state="overwritten")
    facts = processes.parse(Source(scan(launcher, worker, orphan)))
    by_pid = {process.pid: process for process in facts.workers}
    assert require(by_pid[11].environ) == {"NCCL_DEBUG": "WARN"}
    assert by_pid[11].environ_pid == 10
    assert isinstance(by_pid[12].environ, Unmeasured)


def test_ray_worker_does_not_take_the_raylets_environment() -> None:
    raylet = process_row(10, role="ancestor", comm="raylet", environ={"NCCL_DEBUG": "WARN"})
    worker = process_row(
        11, ppid=10, role="worker", cmdline=["ray::RayWorkerWrapper"], environ_state="overwritten"
    )
    facts = processes.parse(Source(scan(raylet, worker)))
    assert isinstance(facts.workers[0].environ, Unmeasured)


def test_strongest_source_wins_and_a_running_worker_hides_files() -> None:
    files = ran(
        ["/etc/epdoctor/ep.env", "NCCL_DEBUG=INFO\nUCX_TLS=all\n"], ["/etc/nccl.conf", "NCCL_IB_TC=3\n"]
    )
    idle = node({**scan(session={"NCCL_DEBUG": "TRACE", "NCCL_ALGO": "Ring"}), "environment.files": files})
    assert idle.environment.get("NCCL_DEBUG") == environment.Sourced("INFO", "/etc/epdoctor/ep.env")
    assert idle.environment.text("NCCL_ALGO") == "Ring"
    busy = node({**scan(process_row(10, environ={"NCCL_DEBUG": "WARN"})), "environment.files": files})
    assert busy.environment.text("NCCL_DEBUG") == "WARN"
    assert busy.environment.get("UCX_TLS") is None
    assert busy.environment.get("NCCL_IB_TC") == environment.Sourced("3", "/etc/nccl.conf")
    given_file = node({}, env_file="export NCCL_DEBUG='INFO'\n# x\nbad line\n")
    assert given_file.environment.get("NCCL_DEBUG") == environment.Sourced("INFO", "--env-file")
    with pytest.raises(Unmeasured):
        node({}).environment  # noqa: B018 - the property raises


def test_prefill_and_decode_on_one_node_may_differ() -> None:
    argv = ["vllm", "serve", "m", "-dp", "16", "--data-parallel-rpc-port"]
    rows = [process_row(n, cmdline=[*argv, str(n)], environ={"NVSHMEM_QP_DEPTH": str(n)}) for n in (10, 11)]
    assert node(scan(*rows)).environment.differing() == ()
    same = [process_row(n, cmdline=[*argv, "29550"], environ={"NVSHMEM_QP_DEPTH": str(n)}) for n in (10, 11)]
    assert [difference.name for difference in node(scan(*same)).environment.differing()] == [
        "NVSHMEM_QP_DEPTH"
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8192),
        ("1M", 2**20),
        ("25.6k", 25600),
        ("1.5K", None),
        ("x", None),
        ("", None),
    ],
)
def test_numbers_as_vllm_reads_them(text: str, number: int | None) -> None:
    assert launch.parse_number(text) == number


def test_token_limit_by_strength() -> None:
    low = Goal(backend="deepep_low_latency")
    argv = ["vllm", "serve", "m", "-dp", "16"]
    assert launch.token_limit(node(scan(), goal=low)).tokens == 256
    assert launch.token_limit(node(scan(process_row(10, cmdline=argv)), goal=low)).tokens == 256
    given_goal = Goal(backend="deepep_low_latency", max_num_batched_tokens=512)
    assert launch.token_limit(node(scan(), goal=given_goal)).tokens == 512
    running = process_row(10, cmdline=[*argv, "--max-num-batched-tokens=1024"])
    limit = launch.token_limit(node(scan(running), goal=given_goal))
    assert (limit.tokens, limit.source) == (1024, "vllm serve (pid 10)")
    with pytest.raises(Unmeasured, match="one data-parallel rank"):
        launch.token_limit(node(scan(process_row(10)), goal=low))


def install(site: Path, dist: str, version: str, record: str = "") -> None:
    folder = site / f"{dist}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Name: {dist}\nVersion: {version}\n")
    (folder / "RECORD").write_text(record)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment with vLLM, DeepEP 2.0 (its own __init__'s import lines), NCCL and NVSHMEM wheels."""
    prefix = tmp_path / "venv"
    site = prefix / "lib" / "python3.12" / "site-packages"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").write_text("")
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.3\n")
    install(site, "vllm", "0.33.0")
    install(site, "torch", "2.14.0+cu130")
    install(site, "deep_ep", "2.0.0+d4f41e4", "deep_ep/__init__.py,sha256=x,1\n")
    install(site, "sgl_deep_ep", "0.1.2.post1", "deep_ep/__init__.py,sha256=y,1\n")
    install(site, "nvidia_nccl_cu13", "2.30.7")
    install(site, "unrelated", "1.0")
    (site / "deep_ep").mkdir()
    (site / "deep_ep" / "__init__.py").write_text(
        "# from .buffers.ep import EPBuffer\n"
        "from .buffers.legacy import Buffer\nfrom .buffers.elastic import ElasticBuffer, EPHandle\n"
        "__version__ = '2.0.0'\n"
    )
    headers = site / "nvidia" / "nvshmem" / "include" / "non_abi"
    headers.mkdir(parents=True)
    # The lines of the wheel nvidia-nvshmem-cu13 3.4.5.
    (headers / "nvshmem_version.h").write_text(
        "#define NVSHMEM_VENDOR_MAJOR_VERSION 3\n#define NVSHMEM_VENDOR_MINOR_VERSION 4\n"
        "#define NVSHMEM_VENDOR_PATCH_VERSION 5\n#define NVSHMEM_TRANSPORT_PLUGIN_MAJOR_VERSION 3\n"
    )
    for name, file in (("nvshmem", "libnvshmem_host.so.3"), ("nccl", "libnccl.so.2")):
        (site / "nvidia" / name / "lib").mkdir(parents=True)
        (site / "nvidia" / name / "lib" / file).write_text("")
    return prefix


def test_python_env_from_a_real_tree(venv: Path) -> None:
    record = run_script(script_of(python_env), python=str(venv / "bin" / "python"))
    source = Source({"python_env.scan": record, **scan(), "libraries.loader": ran(["cache", "read"])})
    facts = python_env.parse(source)
    assert facts.prefix == str(venv)
    assert facts.python == f"{venv}/bin/python"
    assert facts.python_version == "3.12.3"
    assert facts.packages == {
        "vllm": "0.33.0", "torch": "2.14.0+cu130", "deep-ep": "2.0.0+d4f41e4", "sgl-deep-ep": "0.1.2.post1",
        "nvidia-nccl-cu13": "2.30.7",
    }  # fmt: skip
    assert facts.cuda_major == 13
    assert facts.deepep is not None
    assert facts.deepep.generation == "2.0"
    assert [name for name, _ in facts.deepep_owners] == ["deep-ep", "sgl-deep-ep"]
    found = libraries.parse(source)
    assert found.version_of("nvshmem") == "3.4.5"
    assert found.version_of("nccl") == "2.30.7"
    assert found.source_of("nccl").endswith("nvidia-nccl-cu13")


def test_missing_and_empty_interpreters(tmp_path: Path) -> None:
    record = run_script(script_of(python_env), python=str(tmp_path / "nope"))
    with pytest.raises(Unmeasured, match="does not exist"):
        python_env.parse(Source({"python_env.scan": record}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    record = run_script(script_of(python_env), python=str(tmp_path / "bin" / "python"))
    assert python_env.parse(Source({"python_env.scan": record})).packages == {}


def test_environment_is_found_by_a_running_server(fake_vllm: subprocess.Popen[bytes], tmp_path: Path) -> None:
    install(tmp_path / "venv" / "lib" / "python3.12" / "site-packages", "vllm", "0.33.0")
    # argv[0] is the tests' own interpreter, as where python is a link; the script's place decides.
    record = run_script(script_of(python_env))
    prefixes = [row[1]["prefix"] for row in record["data"] if row[0] == "candidate"]
    assert prefixes == [str(tmp_path / "venv")]


def test_loader_takes_the_librarys_folder_of_the_launch(tmp_path: Path) -> None:
    real = tmp_path / "libnccl.so.2.27.3"
    real.write_text("")
    (tmp_path / "libnccl.so.2").symlink_to(real.name)
    record = run_script(script_of(libraries), launch={"LD_LIBRARY_PATH": f"relative:{tmp_path}"})
    found = libraries.parse(Source({"libraries.loader": record, **scan()}))
    first = found.copies("nccl")[0]
    assert (first.path, first.version, first.origin) == (str(real), "2.27.3", "LD_LIBRARY_PATH")


def test_cache_of_this_machine_agrees_with_ldconfig() -> None:
    try:
        printed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no ldconfig here")
    sonames = [line.split()[0] for line in printed.splitlines()[1:40] if "=>" in line and "x86-64" in line]
    expected = {
        (line.split()[0], os.path.realpath(line.rpartition("=> ")[2]))
        for line in printed.splitlines()
        if "=>" in line and line.split()[0] in sonames and "x86-64" in line
    }
    record = run_script(script_of(libraries), sonames=sonames, launch={})
    told = {(row[1][1], row[1][3]) for row in record["data"] if row[0] == "copy" and row[1][0] == "ldconfig"}
    assert sonames
    assert told == expected


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/a/libnccl.so.2.30.7", "2.30.7"), ("/a/libnccl.so.2", ""), ("/a/libcuda.so.580.9.4", "580.9.4"),
        ("/a.b/libx", ""), ("", ""),
    ],
)  # fmt: skip
def test_version_in_a_files_name(path: str, version: str) -> None:
    assert libraries.version_in_name(path) == version


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
KEYS = st.sampled_from(
    ["process", "candidate", "copy", "cache", "searched", "vllm_count", "session", "gpu_holders", "missing"]
)
FIELDS = st.sampled_from(
    ["pid", "ppid", "role", "cmdline", "environ", "environ_state", "limits", "libraries", "cap_eff",
     "seccomp",      "packages", "owners", "deep_ep", "prefix", "why", "sites", "gpus", "uid"]
)  # fmt: skip
ROWS = st.lists(st.tuples(KEYS, JSON | st.dictionaries(FIELDS, JSON, max_size=8)).map(list), max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries(dict.fromkeys(("processes.scan", "python_env.scan", "libraries.loader"), ROWS)))
def test_parsers_raise_nothing_but_unmeasured(rows: dict[str, list[list[Any]]]) -> None:
    probes: dict[str, Any] = {name: ran(["vllm_count", 1], *value) for name, value in rows.items()}
    here = node(probes, goal=Goal(backend="deepep_low_latency"))
    looks: list[Callable[[], Any]] = [
        lambda: here.processes.workers, lambda: here.processes.daemons, lambda: here.python_env.cuda_major,
        lambda: here.libraries.version_of("nccl"), lambda: here.environment.differing(),
        lambda: launch.token_limit(here), lambda: [item.kv_connector for item in launch.launches(here)],
        *(lambda f=f: f(here) for part in (python_env, libraries, environment) for f in part.DIGEST.values()),
    ]  # fmt: skip
    for look in looks:
        with contextlib.suppress(Unmeasured):
            look()


@given(st.text(max_size=300))
def test_environment_text_never_raises(text: str) -> None:
    for name, value in environment.parse_env_text(text).items():
        assert name
        assert isinstance(value, str)
    launch.parse_number(text)
    launch.parse_options(text.split())
