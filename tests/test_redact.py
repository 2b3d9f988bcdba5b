"""Secrets never reach a record; ordinary text stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.collect.redact import BLANK, may_hold_secrets, redact, redact_text

SECRETS = [
    ("HF_TOKEN=hf_abcdefghijklmnopqrstuv", "hf_abcdefghijklmnopqrstuv"),
    ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
    ("AWS_ACCESS_KEY_ID: AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ('{"api_key": "s3cr3t-value"}', "s3cr3t-value"),
    ("vllm serve m --api-key topsecret123 --port 8000", "topsecret123"),
    ("vllm serve m --api-key=topsecret123", "topsecret123"),
    ("https_proxy=http://user:hunter2@proxy:3128", "hunter2"),
    ("Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
    ("password = 'correct horse'", "correct"),
    (
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----",
        "b3BlbnNzaC1rZXk",
    ),
    ("MY_DB_PASSWD=pa55", "pa55"),
]
HARMLESS = [
    "vllm serve m --max-num-batched-tokens 512 --port 8000",
    "max_num_batched_tokens=8192",
    "AuthorizedKeysFile .ssh/authorized_keys",
    "tokenizer=/models/DeepSeek-V3",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04",
    "NVSHMEM_QP_DEPTH=2048 NCCL_IB_HCA=mlx5",
    "Attached GPUs : 8",
    "vendor_id\t: AuthenticAMD\ncpu family\t: 26\n",
    "PasswordAuthentication no\nAuthorizedKeysFile x\n",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secret_is_gone(text: str, secret: str) -> None:
    assert secret not in redact_text(text)
    assert BLANK in redact_text(text)


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_the_quick_look_misses_no_secret(text: str, secret: str) -> None:
    assert may_hold_secrets({"stdout": text})


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200), st.sampled_from(SECRETS))
def test_what_the_quick_look_passes_has_nothing_to_redact(text: str, known: tuple[str, str]) -> None:
    for value in (text, f"{text} {known[0]}", {known[0].partition("=")[0]: text}, ["--" + text[:20], text]):
        if not may_hold_secrets(value):
            assert redact(value) == value


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays(text: str) -> None:
    assert redact_text(text) == text


def test_values_under_secret_names_and_words_after_secret_flags() -> None:
    record = {
        "environ": {"HF_TOKEN": "x1", "NCCL_DEBUG": "INFO"},
        "cmdline": ["serve", "--api-key", "x2", "--port", "1"],
    }
    assert redact(record) == {
        "environ": {"HF_TOKEN": BLANK, "NCCL_DEBUG": "INFO"},
        "cmdline": ["serve", "--api-key", BLANK, "--port", "1"],
    }


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_redaction_is_stable(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once
