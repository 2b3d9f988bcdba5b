"""What only names an error, stands at zero or came right in the end is no report of a fault; what looks like it, is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.explain.answer import explain_text
from epdoctor.explain.documents import is_about_errors, is_mention
from epdoctor.explain.guards import is_healthy, is_nothing
from epdoctor.explain.hearsay import without_hearsay
from epdoctor.explain.recovery import may_recover, went_well

BUFFER = "cannot register cq buf"
RETRY = "INFO:etcd:connect to 10.0.0.5:2379 failed (connection refused), retrying in 2s (1/10)"


def named(text: str) -> list[str]:
    return [candidate.cause.id for candidate in explain_text(text.encode()).results]


@pytest.mark.parametrize(
    "text",
    [
        f'## 1.2.0\n- fix: say what "{BUFFER}" means\n- docs: memlock\n',
        f"## 0.4.2\n- fix: say {BUFFER} instead of crashing the scheduler\n- docs: memlock\n- perf: fewer barriers\n",
        f"77fe012 test: cover {BUFFER}\n90c1d7e docs: memlock\n",
        f"commit 9f2d1c07aa31\nAuthor: A <a@example.org>\n\n    say the limit in {BUFFER}\n",
        f'@@ -1,2 +1,3 @@\n+    if "{BUFFER}" in line:\n+        return "memlock"\n',
        f'nit: the hint for "{BUFFER}" is misleading on dma-buf systems, otherwise LGTM',
        f'static const char *errs[] = {{\n    "{BUFFER}",\n    NULL,\n}};\n',
        f"usage: run [-h]\n\noptions:\n  --big-lock   avoids {BUFFER} (default: off)\n",
        "tests/test_text.py::test_cannot_register_cq_buf PASSED [100%]",
        f"grep -rn '{BUFFER}' /var/log/vllm",
    ],
    ids=[
        "changelog",
        "one release",
        "history",
        "commit",
        "diff",
        "review",
        "source",
        "help",
        "passed test",
        "search",
    ],
)
def test_text_about_errors_names_no_cause(text: str) -> None:
    assert named(text) == []


@pytest.mark.parametrize(
    "text",
    [
        f"we get `{BUFFER}` on every start since the upgrade",
        f"### Describe the bug\nDies at start.\n### Logs\nibgda.cpp:1454: non-zero status: 7 {BUFFER}.\n",
        f"CHANGELOG of our cluster\n- new image\n- all decode pods crash with this:\n  ibgda.cpp:1454: {BUFFER}\n",
        f"usage: run [options]\n  --nodes N   nodes (default: 2)\nibgda.cpp:1454: non-zero status: 7 {BUFFER}.",
        f"tests/test_ep.py::test_ll FAILED [100%]\nE   RuntimeError: {BUFFER}\n=== 1 failed, 7 passed in 2 s ===",
        f"$ kubectl logs decode-0 | grep buf\nibgda.cpp:1454: non-zero status: 7 {BUFFER}.",
    ],
    ids=["quoted ticket", "issue template", "list with a log", "refused arguments", "failed test", "found"],
)
def test_report_in_the_form_of_a_document_is_explained(text: str) -> None:
    assert named(text)[:1] == ["memlock-limit"]


def test_quiet_run_of_tests_that_pass_names_no_cause() -> None:
    text = (
        f"pytest -q\n..ss.... [100%]\n6 passed, 2 skipped ({BUFFER}: needs 2 nodes), 3 warnings in 21.40s\n"
    )
    assert named(text) == []
    assert named(text.replace("6 passed", "1 failed, 5 passed").replace("..ss", "F.ss"))[:1] == [
        "memlock-limit"
    ]


def test_log_in_json_is_no_source() -> None:
    text = '{"msg":"NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus."}\n{"msg":"a"}\n{"msg":"b"}\n'
    assert not is_about_errors(text)
    assert named(text)[:1] == ["xid-79-fallen-off-bus"]


def test_retry_that_succeeded_names_no_cause() -> None:
    assert (
        named(f"{RETRY}\n{RETRY}\nINFO:etcd:connected to 10.0.0.5:2379\nINFO:router:serving on :8000\n") == []
    )


@pytest.mark.parametrize(
    "after",
    [
        "",
        "ERROR:router:could not reach etcd, giving up",
        "INFO:x:connected\nERROR:etcd:lease lost, shutting down",
    ],
    ids=["nothing", "gave up", "lost again"],
)
def test_retry_without_a_good_end_is_explained(after: str) -> None:
    assert named(f"{RETRY}\n{RETRY}\n{after}")[:1] == ["etcd-unreachable"]


def test_crash_after_a_healthy_start_is_explained() -> None:
    start = "INFO:     Application startup complete.\n"
    xid = "NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus."
    assert named(start + xid)[:1] == ["xid-79-fallen-off-bus"]


def test_success_far_below_a_retry_is_found_in_the_logs_end() -> None:
    filler = b'INFO:     10.0.0.9:4 - "GET /metrics HTTP/1.1" 204\n' * 40_000
    log = RETRY.encode() + b"\n" + filler
    assert explain_text(log).results
    assert not explain_text(log + b"INFO:etcd:connected to 10.0.0.5:2379\n").results


@pytest.mark.parametrize(
    ("line", "mild"),
    [
        (RETRY, True),
        ("WARN etcd not reachable yet", True),
        ("connect to 10.0.0.5 failed (connection refused), retrying in 8s (10/10)", False),
        ("ERROR connection refused, retrying", False),
        ("GPU Direct RDMA is not available, using sockets", False),
        ("IBGDA init failed, trying IBRC", False),
    ],
)
def test_which_lines_may_come_right(line: str, mild: bool) -> None:
    assert may_recover(line) is mild


@pytest.mark.parametrize(
    ("after", "well"),
    [
        ("INFO connected to etcd", True),
        ("INFO not connected", False),
        ("INFO backend decode-2 healthy after 2 retries", True),
        ("WARN backend decode-2 not healthy", False),
        ("WARN backend decode-2 unhealthy", False),
        ("INFO disconnected from etcd", False),
        ("INFO connected\nTraceback (most recent call last):", False),
        ("0 failed, all ready\nINFO: Application startup complete.", True),
    ],
)
def test_what_counts_as_a_good_end(after: str, well: bool) -> None:
    assert went_well(after) is well


@pytest.mark.parametrize(
    ("line", "healthy"),
    [
        ("    local_ack_timeout_err 0", True),
        ("local_ack_timeout_err\t0\t--", True),
        ("local_ack_timeout_err\t3\t--", False),
        ("link_downed,0,0,0,0", True),
        ("link_downed,0,97,0,0", False),
        ('DCGM_FI_DEV_XID_ERRORS{gpu="0"} 0', True),
        ('DCGM_FI_DEV_XID_ERRORS{gpu="0"} 79', False),
        ('up{job="vllm"} 0', False),
        ("512 GPUs, 0 Xid 79, 0 NVLink errors", True),
        ("vllm-decode-0   1/1   Running   0   4d2h", True),
        ("vllm-decode-0   0/1   Running   0   4d2h", False),
        ("vllm-decode-0   1/1   Running   41 (2m ago)   4d2h", False),
        ("driver 580.95.05 / FM 580.95.05 on all", True),
        ("driver 580.95.05 / FM 580.82.07 on g11", False),
        ("two nodes with VLLM_HOST_IP=10.30.7.11 and 10.30.7.11, it fails", False),
        ("RuntimeError: 0 active drivers", False),
        ("NCCL_IB_RETRY_CNT=0", False),
        ("ERR_ACCESS_DENIED 0", False),
    ],
)
def test_values_that_say_there_is_no_fault(line: str, healthy: bool) -> None:
    assert is_healthy(line) is healthy


@pytest.mark.parametrize(("value", "causes"), [("0", 0), ("7", 1)])
def test_counter_whose_value_is_on_the_next_line(value: str, causes: int) -> None:
    text = f"$ rdma statistic show link mlx5_0/1 | tr ' ' '\\n'\nlocal_ack_timeout_err\n{value}\n"
    assert len(named(text)[:1]) == causes


def test_row_of_nothing() -> None:
    assert is_nothing("3, 0, [N/A], No")
    assert not is_nothing("3, 0, 14, No")


def test_counter_behind_many_at_zero_is_found() -> None:
    lines = [f'DCGM_FI_DEV_ROW_REMAP_FAILURE{{gpu="{n % 8}"}} 0' for n in range(100)]
    assert named("\n".join(lines)) == []
    found = [*lines, "NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus."]
    assert named("\n".join(found))[:1] == ["xid-79-fallen-off-bus"]


@given(st.text(alphabet=" \n-*#|\"`'(){}[]:=,.$>+@/0a1errok", max_size=400))
def test_any_text_is_judged(text: str) -> None:
    assert is_about_errors(text) in (True, False)
    assert is_mention(text, True) in (True, False)
    assert set(without_hearsay(text).split("\n")) <= set("\n".join(text.splitlines()).split("\n")) | {""}


@pytest.mark.parametrize(
    "text",
    [
        f"## 0.7.3\n- mooncake: the peer is named beside {BUFFER}\n- doctor: treat memlock as a limit\n",
        f"commit 91bd0c2: docs: explain {BUFFER} and the memlock hint\n    No functional change.\n",
        f"#4412 [Bugfix] Handle {BUFFER} on first init\n#4419 [Doc] Explain memlock\n",
        f"FIX: {BUFFER} with a small memlock is now a clean error\nBREAKING: drop nv_peer_mem\n",
        f"Release notes 3.5: Fixed an issue where the limit led to {BUFFER}.",
        f"### Troubleshooting\nIf you see `{BUFFER}`, raise the memlock limit first.",
        f"> [!WARNING]\n> DeepEP prints `{BUFFER}` when the memlock limit is small.",
        f'def test_memlock():\n    out = explain("{BUFFER}")\n    assert out.cause\n',
        '{"id":"x","object":"chat.completion","choices":[{"message":{"content":"' + BUFFER + '"}}]}',
        '{"status":"resolved","labels":{"alertname":"cannot register cq buf"}}',
        f"**What this PR does**\nSays the limit in {BUFFER}.\n**Checklist**\n- [x] unit test\n",
    ],
    ids=[
        "version",
        "commit",
        "titles",
        "kinds",
        "note",
        "manual",
        "admonition",
        "test",
        "answer",
        "alert",
        "pr",
    ],
)
def test_more_texts_about_errors(text: str) -> None:
    assert named(text) == []


PROBE = '  Warning  Unhealthy  2m40s  kubelet  Startup probe failed: Get "http://10.2.6.9:8000/health": dial tcp: connect: connection refused\n'


@pytest.mark.parametrize(
    ("after", "fine"),
    [
        (
            "NAME        READY   STATUS    RESTARTS   AGE\ndecode-0    1/1     Running   0          4m20s\n",
            True,
        ),
        ("pod/decode-0 condition met\n", True),
        (
            "NAME        READY   STATUS    RESTARTS   AGE\ndecode-0    0/1     Running   7          44m\n",
            False,
        ),
        ("", False),
    ],
)
def test_a_probe_that_failed_before_its_pod_came_up(after: str, fine: bool) -> None:
    assert (named(PROBE + after) == []) is fine


def test_an_option_misspelt_beside_the_right_one() -> None:
    line = "vllm serve: error: argument --all2all-backend: invalid choice: '{}' (choose from 'deepep_low_latency', 'naive')"
    assert named(line.format("DeepEP-low-latency")) == []
    assert "vllm-version-too-old-for-flag" in named(line.format("deepep_v2"))


def test_a_count_of_nothing() -> None:
    assert named("$ dcgmi diag -r 1 | grep -c Fail\n0\n") == []


def test_two_lines_of_a_log_are_not_one_broken_line() -> None:
    log = (
        "n1:40:47 [7] NCCL INFO MNNVL busId 0x1b000 fabric UUID 0.0 cliqueId 0x0 state 3 healthMask 0x0\n"
        "n1:40:45 [3] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.44.0.15<0>\n"
    )
    assert named(log) == []


@pytest.mark.parametrize(
    ("line", "healthy"),
    [
        ("RuntimeError: Failed: NCCL GIN is unavailable. EP_DISABLE_GIN=0", False),
        ("AssertionError: props.gin_type != NONE", False),
        ("uncorrectable errors = NONE", True),
    ],
)
def test_a_message_that_ends_in_a_setting_is_no_counter(line: str, healthy: bool) -> None:
    assert is_healthy(line) is healthy


def test_a_peer_that_answers_a_ping_is_no_success() -> None:
    text = "[c10d] The client socket has timed out after 300000ms while trying to connect to (decode-0.vllm, 29500)\n"
    assert named(text) != []
    assert named(text + "ping decode-0.vllm ok\n") != []


def test_a_head_of_counters_over_zeros() -> None:
    head = "timestamp, name, temperature.gpu, ecc.errors.uncorrected.volatile.total\n"
    assert named(head + "2025/12/01 10:00:00.000, NVIDIA H200, 38, 0\n") == []


@pytest.mark.parametrize(
    ("end", "fine"),
    [
        ("test_low_latency.py: all 1024 checks passed\n", True),
        ("test_low_latency.py: dispatch timed out\n", False),
        ("", False),
    ],
)
def test_a_library_done_without(end: str, fine: bool) -> None:
    text = "n1:80:80 [0] NVSHMEM INFO GDRCopy library not found. disabling GDRCopy.\n" + end
    assert (named(text) == []) is fine


def test_one_device_done_without() -> None:
    line = "WARN: device mlx5_8 cannot allocate buffer on the specified memory type. Skipping...\n"
    assert named(line) != []
    assert named(line + "[rank 0] Dispatch + combine bandwidth: 46.10 GB/s, avg_t=301.31 us\n") == []


def test_a_playbook_that_ends_without_a_failure() -> None:
    recap = "PLAY RECAP ***\nn1 : ok=9 changed=2 unreachable=0 failed={} skipped=0 rescued=0 ignored=1\n"
    task = 'fatal: [n1]: FAILED! => {"msg": "modprobe: FATAL: Module nvidia_peermem not found in directory /lib/modules"}\n'
    assert named(task + "...ignoring\n\n" + recap.format(0)) == []
    assert named(task + recap.format(1)) != []


def test_a_link_down_and_up_in_one_line() -> None:
    assert "rdma-link-flapping" in named(
        "mlx5_core 0000:1b:00.0 ens1np0: Link down (3rd time in 10 min), then Link up again 2 s later\n"
    )


def test_a_module_taken_out_that_was_not_there() -> None:
    assert named("rmmod: ERROR: Module gdrdrv is not currently loaded\nmodprobe gdrdrv: ok\n") == []


def test_the_first_gpu_is_no_counter_at_zero() -> None:
    line = "NVRM: GPU 0000:18:00.0: rm_init_adapter failed, device minor number {}"
    assert named(line.format(0)) == named(line.format(3)) != []


@pytest.mark.parametrize(
    "text", ["changelog 0.33: a clear error where memlock is 64k, cannot register cq buf"]
)
def test_one_line_of_a_changelog(text: str) -> None:
    assert named(text) == []
