"""A model's weights from its config.json, and what a rank of it needs on its GPU."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.launch.buffers import all2all_buffers
from epdoctor.launch.footprint import memory_by_product
from epdoctor.launch.memory import GIB, Layout, budget, smallest_fit, utilisation_default
from epdoctor.launch.model_shape import ModelShape, parse_config
from epdoctor.launch.model_table import config_by_name, short_name

ROWS = {row["names"][0]: row for row in compat.field("models_moe", "models", list)}
INDEXED = [name for name, row in ROWS.items() if "index_bytes" in row]
H100, H200 = 81559 << 20, 143771 << 20


def shape(name: str) -> ModelShape:
    return parse_config(config_by_name(name)[0], name)


@pytest.mark.parametrize("name", INDEXED)
def test_weights_are_those_of_the_safetensors_index(name: str) -> None:
    """metadata.total_size of the published model.safetensors.index.json, as the table quotes it."""
    assert len(INDEXED) >= 7
    wanted = ROWS[name]["index_bytes"]
    assert abs(parse_config(ROWS[name]["config"]).checkpoint_bytes - wanted) < 0.02 * wanted


# What the models' authors say they have, in billions.
PUBLISHED = {
    "DeepSeek-V4-Flash": 284, "Qwen3-Coder-480B-A35B": 480, "Kimi-K2": 1026, "GLM-4.5": 355, "GLM-4.5-Air": 106,
    "GLM-5": 744, "gpt-oss-120b": 117, "Mixtral-8x22B": 141, "Llama-4-Scout-17B-16E": 109,
    "Llama-4-Maverick-17B-128E": 400, "MiniMax-M1": 456, "MiniMax-M2": 229,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_number_of_weights_is_the_published_one(name: str, billions: int) -> None:
    found = shape(name)
    weights = (
        found.moe_layers * (found.experts * found.expert_params + found.shared_params + found.router_params)
        + found.layers * found.attention_params
        + (found.layers - found.moe_layers) * found.dense_params
        + found.embedding_params
    )
    assert weights / 1e9 == pytest.approx(billions, rel=0.02)


def test_every_row_has_a_source_and_a_shape_or_a_reason() -> None:
    for name, row in ROWS.items():
        assert len(row["source"]) > 10
        try:
            assert parse_config(row["config"], name).routed_bytes > 0
        except Unmeasured as reason:
            assert "linear attention" in str(reason)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("deepseek-ai/DeepSeek-V3-0324", "fp8"),
        ("/models/DeepSeek-R1-0528/", "fp8"),
        ("models--deepseek-ai--DeepSeek-V3.1/snapshots/4236a6af538feda4548eca9ab308586007567f52", "fp8"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "fp8"),
        ("nvidia/DeepSeek-R1-0528-NVFP4", "nvfp4"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "bf16"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "fp8"),
        ("unsloth/DeepSeek-V3-bf16", "bf16"),
        ("moonshotai/Kimi-K2-Thinking", "int4 (group 32)"),
        ("moonshotai/Kimi-K2-Instruct-0905", "fp8"),
        ("openai/gpt-oss-120b", "mxfp4"),
        ("deepseek-ai/DeepSeek-V4-Flash", "fp8, experts mxfp4"),
    ],
)
def test_how_a_name_is_stored(name: str, wanted: str) -> None:
    assert shape(name).quantisation.name == wanted


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "zai-org/GLM-4.5V", "zai-org/GLM-4.7-Flash", "cognitivecomputations/DeepSeek-V3-AWQ",
        "Qwen/Qwen3-30B-A3B-GPTQ-Int4", "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8", "DeepSeek-V3.7", "", "/",
        "x" * 5000,
    ],
)  # fmt: skip
def test_what_the_table_does_not_know(name: str) -> None:
    with pytest.raises(Unmeasured):
        shape(name)


def test_deepseek_v3_on_eight_gpus() -> None:
    """Routed experts 654 GB in FP8, 76.1 GiB a GPU at EP 8; a redundant expert a rank is 2.38 GiB."""
    found = shape("DeepSeek-V3")
    assert found.routed_bytes / 1e9 == pytest.approx(654, abs=1)
    small, large = (budget(found, Layout(1, 8), size) for size in (H100, H200))
    assert small.terms[0].gib == pytest.approx(76.1, abs=0.1)
    assert small.surely_too_much
    assert not small.fits
    assert large.fits
    assert not large.tight
    with_one_more = budget(found, Layout(1, 8, redundant=8), H200)
    assert (with_one_more.needed_bytes - large.needed_bytes) / GIB == pytest.approx(2.38, abs=0.01)
    assert smallest_fit(found, Layout(1, 1), H100, 8) == 16
    assert smallest_fit(found, Layout(1, 1), 8 * GIB, 8) is None


def test_a_speculative_layer_is_counted() -> None:
    found = shape("DeepSeek-V3")
    more = budget(found, Layout(1, 8), H200, speculative=True).needed_bytes
    assert 1.4 * GIB < more - budget(found, Layout(1, 8), H200).needed_bytes < 3 * GIB


def test_stages_share_the_layers() -> None:
    found = shape("DeepSeek-V3")
    one, two = (budget(found, Layout(8, 1, pipeline=stages), H200) for stages in (1, 2))
    assert two.terms[0].size_bytes * 2 == pytest.approx(one.terms[0].size_bytes)


def test_buffers() -> None:
    """VLLM_DEEPEP_BUFFER_SIZE_MB for NVLink and again for RDMA; the other back ends say what they are."""
    high = [
        all2all_buffers("deepep_high_throughput", across=across, tokens=256, hidden=7168, experts=256)
        for across in (False, True)
    ]
    assert [item.size_bytes / GIB for item in high] == [1, 2]
    low = all2all_buffers("deepep_low_latency", across=True, tokens=2048, hidden=5120, experts=448)
    assert low.size_bytes / GIB == pytest.approx(35.55, abs=0.01)
    assert not all2all_buffers("nixl_ep", across=True, tokens=1, hidden=1, experts=1).counted
    assert (
        all2all_buffers("allgather_reducescatter", across=True, tokens=1, hidden=1, experts=1).size_bytes == 0
    )


@pytest.mark.parametrize(
    ("version", "share"), [("0.33.0", 0.92), ("0.22.1", 0.92), ("0.19.1", 0.9), ("0.11.0", 0.9)]
)
def test_share_of_the_gpu(version: str, share: float) -> None:
    assert utilisation_default(version) == share


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("NVIDIA-H100-80GB-HBM3", 81559), ("nvidia-h200-141gb", 143771), ("NVIDIA H20", 97871), ("NVIDIA-H20-3e", None),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", None), ("H200", 143771), ("nvidia-a100-40gb", 40960), ("T4", None),
        ("", None),
    ],
)  # fmt: skip
def test_memory_by_the_name_of_a_gpu(name: str, mib: int | None) -> None:
    assert memory_by_product(name) == (None if mib is None else mib << 20)


KEYS = sorted(
    {key for row in ROWS.values() for key in row["config"]} | {"text_config", "layer_types", "moe_layers"}
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
GARBAGE = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), GARBAGE | st.integers(0, 4096), max_size=12),
    st.sampled_from(sorted(ROWS)),
)
def test_any_config_is_a_shape_or_unmeasured(noise: dict[str, Any], name: str) -> None:
    for config in (noise, {**ROWS[name]["config"], **noise}):
        try:
            found = parse_config(config)
            assert budget(found, Layout(1, 8), H200).needed_bytes >= 0
        except Unmeasured:
            pass


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=60)
    | st.sampled_from(sorted(ROWS)).flatmap(lambda n: st.text(max_size=12).map(lambda t: n + t))
)
def test_any_name_is_found_or_unmeasured(name: str) -> None:
    short_name(name)
    with contextlib.suppress(Unmeasured):
        config_by_name(name)
