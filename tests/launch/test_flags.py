"""The table of vLLM's flags: kinds, short forms, releases, and what was probably meant."""

from __future__ import annotations

import pytest

from epdoctor.launch.arguments import parse_words
from epdoctor.launch.flags import load
from epdoctor.launch.shell.text import plain
from epdoctor.model import Location

PLACE = Location("--", 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tensor-parallel-size", "int"), ("enable-expert-parallel", "switch"), ("eplb-config", "json"),
        ("kv-transfer-config", "json"), ("all2all-backend", "choice"), ("gpu-memory-utilization", "float"),
        ("served-model-name", "list"), ("headless", "switch"), ("api-server-count", "int"),
        ("data-parallel-address", "str"), ("compilation-config", "json"), ("config", "str"), ("max-model-len", "int"),
    ],
)  # fmt: skip
def test_kinds(name: str, kind: str) -> None:
    assert load().flags[name].kind == kind


def test_short_forms() -> None:
    shorts = load().shorts
    assert {short: shorts[short] for short in ("-tp", "-dp", "-dpn", "-dpr", "-dpl", "-dpa", "-dpp", "-ep", "-asc")} == {
        "-tp": "tensor-parallel-size", "-dp": "data-parallel-size", "-dpn": "data-parallel-rank",
        "-dpr": "data-parallel-start-rank", "-dpl": "data-parallel-size-local", "-dpa": "data-parallel-address",
        "-dpp": "data-parallel-rpc-port", "-ep": "enable-expert-parallel", "-asc": "api-server-count",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "version", "known"),
    [
        ("num-redundant-experts", "0.9.2", True),
        ("num-redundant-experts", "0.33.0", False),
        ("num-redundant-experts", "", False),
        ("nnodes", "0.10.2", False),
        ("nnodes", "0.12.0", True),
        ("nnodes", "0.33.0", True),
        ("data-parallel-multi-port-external-lb", "0.11.0", False),
        ("data-parallel-multi-port-external-lb", "0.33.0.dev1+g1", True),
        ("eplb-config.window_size", "0.33.0", True),
        ("no-such-flag", "0.33.0", False),
        ("nnodes", "0.5.0", True),
        ("nnodes", "garbage", True),
    ],
)
def test_releases(name: str, version: str, known: bool) -> None:
    assert load().known(name, version) is known


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("tensor-paralel-size", "--tensor-parallel-size"),
        ("enable-expert-paralel", "--enable-expert-parallel"),
        ("expert-parallel", "--enable-expert-parallel"),
        ("all2all-backends", "--all2all-backend"),
        ("eplb-confg.window_size", "--eplb-config.window_size"),
        ("zzz", ""),
    ],
)
def test_did_you_mean(written: str, meant: str) -> None:
    assert load().similar(written) == meant


def test_how_words_become_options() -> None:
    words = [
        "m",
        "--no-enable-eplb",
        "--enforce-eager",
        "true",
        "--served-model-name",
        "a",
        "b",
        "--lora-modules",
        "x=y",
        "--port",
        "1",
        "--port=2",
        "-cc.mode",
        "3",
        "-O.cudagraph_mode=FULL",
        "--api_server_count",
        "4",
        "--no-such",
        "5",
        "--over-ride",
        "-tp=8",
        "--seed",
        "-1",
        "--",
        "-x",
    ]
    parsed = parse_words([plain(word, PLACE) for word in words], load(), "")
    options = {name: option.value.text for name, option in parsed.options.items()}
    assert options == {
        "enable-eplb": "", "enforce-eager": "", "served-model-name": "a b", "lora-modules": "x=y", "port": "2",
        "compilation-config.mode": "3", "compilation-config.cudagraph_mode": "FULL", "api-server-count": "4",
        "no-such": "5", "over-ride": "", "tensor-parallel-size": "8", "seed": "-1", "x": "",
    }  # fmt: skip
    assert parsed.options["enable-eplb"].negated
    assert not parsed.options["enable-eplb"].on
    assert [word.text for word in parsed.stray] == ["true"]
    assert [(option.name, option.value.text) for option in parsed.repeated] == [("port", "1")]
    assert [name for name, option in parsed.options.items() if not option.known_to_vllm] == [
        "no-such",
        "over-ride",
        "x",
    ]


def test_the_table_says_where_it_comes_from() -> None:
    flags = load()
    assert flags.versions[-1] == "0.33.0"
    assert flags.as_of >= "2026-11-21"
    for flag in flags.flags.values():
        assert flag.kind in ("switch", "int", "float", "str", "json", "choice", "list", "optional")
        assert flag.first in ("", *flags.versions)
        assert flag.last in ("", *flags.versions)
        assert (flag.kind == "choice") == bool(flag.choices)
