"""How many bytes a mixture-of-experts model's weights take, from its config.json. Pure.

Counted as the modules of transformers and vLLM define them (models/deepseek_v2.py, qwen3_moe.py, glm4_moe.py,
llama4.py, gpt_oss.py, mixtral.py, minimax_m2.py): attention (grouped-query or multi-head latent), router, routed
and shared experts, dense layers, embeddings. Norms and biases are below a thousandth and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor.exceptions import Unmeasured

DTYPE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "auto": 2.0, "half": 2.0, "float": 4.0}
FP8_BLOCK = 128 * 128
"""Weights that share one 4-byte scale in DeepSeek's FP8 checkpoints (quantization_config.weight_block_size)."""


@dataclass(frozen=True)
class Quantisation:
    """Bytes a weight takes, scales included."""

    name: str
    """"bf16", "fp8", "mxfp4", "int4 (group 32)"."""
    expert_bytes: float
    """A weight of a routed expert."""
    linear_bytes: float
    """A weight of attention, dense and shared layers."""
    embedding_bytes: float = 2.0


@dataclass(frozen=True)
class ModelShape:
    """Numbers of weights by where they go."""

    name: str
    layers: int
    moe_layers: int
    hidden: int
    experts: int
    """Routed experts a layer."""
    top_k: int
    expert_params: int
    """Weights of one routed expert in one layer."""
    shared_params: int
    """Weights of all shared experts in one layer; 0: none."""
    router_params: int
    dense_params: int
    """Weights of the feed-forward part of one layer without experts."""
    heads: int
    """Attention heads, which a tensor-parallel group divides."""
    attention_params: int
    """A layer, on average where layers differ."""
    embedding_params: int
    """Input embedding and output head."""
    mtp_layers: int
    """Multi-token-prediction layers in the checkpoint; loaded only with a speculative configuration."""
    kv_values: float
    """Values that the KV cache keeps for a token in a layer."""
    kv_heads: int
    """Over which a tensor-parallel group divides the cache; 0: latent attention, every rank keeps all of it."""
    windowed: bool
    """Some layers keep a window of the tokens, or a compressed form: `kv_values` is more than they take."""
    quantisation: Quantisation

    @property
    def expert_bytes(self) -> float:
        """One routed expert in one layer."""
        return self.expert_params * self.quantisation.expert_bytes

    @property
    def routed_bytes(self) -> float:
        """All routed experts of all layers."""
        return self.moe_layers * self.experts * self.expert_bytes

    @property
    def shared_bytes(self) -> float:
        return self.moe_layers * self.shared_params * self.quantisation.linear_bytes

    @property
    def attention_bytes(self) -> float:
        return self.layers * self.attention_params * self.quantisation.linear_bytes

    @property
    def dense_bytes(self) -> float:
        """Dense feed-forward layers and routers."""
        dense = (self.layers - self.moe_layers) * self.dense_params * self.quantisation.linear_bytes
        return dense + self.moe_layers * self.router_params * self.quantisation.embedding_bytes

    @property
    def embedding_bytes(self) -> float:
        return self.embedding_params * self.quantisation.embedding_bytes

    @property
    def mtp_bytes(self) -> float:
        """One decoder layer each, its projection, and its own copies of embedding and head
        (deepseek-ai/DeepSeek-V3 README_WEIGHTS.md)."""
        q = self.quantisation
        layer = (
            self.experts * self.expert_bytes + self.shared_params * q.linear_bytes
            + self.router_params * q.embedding_bytes + self.attention_params * q.linear_bytes
            + 2 * self.hidden * self.hidden * q.embedding_bytes
        )  # fmt: skip
        return self.mtp_layers * (layer + self.embedding_bytes)

    @property
    def mtp_expert_bytes(self) -> float:
        """Its routed experts."""
        return self.mtp_layers * self.experts * self.expert_bytes

    @property
    def mtp_other_bytes(self) -> float:
        """Its attention, shared experts, router and projection; embedding and head are the model's own."""
        return self.mtp_bytes - self.mtp_expert_bytes - self.mtp_layers * self.embedding_bytes

    @property
    def checkpoint_bytes(self) -> float:
        """Everything in the safetensors files."""
        return self.served_bytes + self.mtp_bytes

    @property
    def served_bytes(self) -> float:
        """What vLLM loads without speculative decoding."""
        return (
            self.routed_bytes
            + self.shared_bytes
            + self.attention_bytes
            + self.dense_bytes
            + self.embedding_bytes
        )


def _int(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40:
            return value
    if default is not None:
        return default
    raise Unmeasured(f"config.json has no {names[0]}")


def parse_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """A config.json of a mixture-of-experts model. Raises Unmeasured for one that is none, or is not understood."""
    whole = config
    for inner in ("text_config", "llm_config", "language_config"):
        nested = config.get(inner)
        if isinstance(nested, Mapping):
            config = {**nested, **{k: v for k, v in whole.items() if k == "quantization_config"}}
    kind = str(config.get("model_type", ""))
    layers = _int(config, "num_hidden_layers")
    if not layers:
        raise Unmeasured("config.json says no layers")
    hidden = _int(config, "hidden_size")
    experts = _int(
        config, "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", default=0
    )
    if not experts:
        raise Unmeasured(f"{name or kind or 'this model'} has no routed experts")
    _refuse_other_layers(config)
    expert_width = _int(config, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    dense_width = _int(config, "intermediate_size_mlp", "intermediate_size", default=expert_width)
    moe_layers = _moe_layers(config, kind, layers)
    shared_width = _shared_width(config, kind, expert_width)
    heads = _int(config, "num_attention_heads")
    kv_heads = _int(config, "num_key_value_heads", default=heads)
    attention, kv_values, kv_divided = _attention(config, layers, hidden, heads, kv_heads)
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        name=name or str(config.get("_name_or_path", "")),
        layers=layers,
        moe_layers=moe_layers,
        hidden=hidden,
        experts=experts,
        top_k=_int(config, "num_experts_per_tok", "moe_topk", "experts_per_token", default=1),
        expert_params=3 * hidden * expert_width,
        shared_params=3 * hidden * shared_width,
        router_params=hidden * experts,
        dense_params=3 * hidden * dense_width,
        heads=heads,
        attention_params=attention,
        embedding_params=_int(config, "vocab_size") * hidden * (1 if tied else 2),
        mtp_layers=_int(config, "num_nextn_predict_layers", "num_mtp_modules", default=0),
        kv_values=kv_values,
        kv_heads=kv_divided,
        windowed=_windowed(config, kind),
        quantisation=quantisation(config),
    )


def _refuse_other_layers(config: Mapping[str, Any]) -> None:
    """State-space and gated linear attention layers have weights of other shapes."""
    types = config.get("layer_types")
    mixed = isinstance(types, list) and any("linear" in str(item) or "mamba" in str(item) for item in types)
    names = ("full_attention_interval", "linear_attn_config", "hybrid_override_pattern", "mamba_d_state")
    if mixed or any(config.get(name) for name in names):
        raise Unmeasured("a model with linear attention or state-space layers is not counted")


def _moe_layers(config: Mapping[str, Any], kind: str, layers: int) -> int:
    found = _moe_layers_said(config, kind, layers)
    if not 0 < found <= layers:
        raise Unmeasured(f"config.json says {found} layers with experts of {layers}")
    return found


def _moe_layers_said(config: Mapping[str, Any], kind: str, layers: int) -> int:
    explicit = config.get("moe_layers")
    if isinstance(explicit, list):
        return len(explicit)
    each = config.get("moe_layer_freq")
    if isinstance(each, list):
        return sum(item == 1 for item in each[:layers])
    if kind.startswith("llama4"):
        return layers // max(1, _int(config, "interleave_moe_layer_step", default=1))
    dense_first = _int(config, "first_k_dense_replace", default=0)
    dense_only = config.get("mlp_only_layers")
    dense = max(dense_first, len(dense_only) if isinstance(dense_only, list) else 0)
    step = max(1, _int(config, "decoder_sparse_step", "moe_layer_freq", default=1))
    return (layers - dense) // step


def _windowed(config: Mapping[str, Any], kind: str) -> bool:
    """gpt-oss: every second layer; Llama 4: chunks in three of four; sparse MLA: an FP8 form of its own by default
    (vLLM 0.33.0 kv_cache_dtype fp8_ds_mla)."""
    named = kind.startswith(("gpt_oss", "llama4")) or bool(config.get("index_n_heads"))
    sliding = bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False
    return named or sliding or bool(config.get("attention_chunk_size"))


def _shared_width(config: Mapping[str, Any], kind: str, expert_width: int) -> int:
    given = _int(config, "shared_expert_intermediate_size", default=0)
    if given:
        return given
    count = _int(
        config, "n_shared_experts", "num_shared_experts", default=1 if kind.startswith("llama4") else 0
    )
    return count * expert_width


def _attention(
    config: Mapping[str, Any], layers: int, hidden: int, heads: int, kv_heads: int
) -> tuple[int, float, int]:
    """(weights a layer, KV values a token and layer, heads that the cache is divided over)."""
    if config.get("o_groups") or config.get("o_lora_rank"):
        return _compressed_attention(config, layers, hidden, heads)
    if config.get("kv_lora_rank"):
        latent, rope = _int(config, "kv_lora_rank"), _int(config, "qk_rope_head_dim")
        nope, value = _int(config, "qk_nope_head_dim"), _int(config, "v_head_dim")
        low = _int(config, "q_lora_rank", default=0)
        query = hidden * low + low * heads * (nope + rope) if low else hidden * heads * (nope + rope)
        weights = query + hidden * (latent + rope) + latent * heads * (nope + value) + heads * value * hidden
        kept = float(latent + rope)
        if config.get("index_n_heads"):
            # DeepSeek sparse attention's indexer keeps one FP8 key and its scale a token: index_head_dim / 2.
            count, size = _int(config, "index_n_heads"), _int(config, "index_head_dim")
            weights += (low or hidden) * count * size + hidden * size + hidden * count
            kept += size / 2 + 2
        return weights, kept, 0
    size = _int(config, "head_dim", default=hidden // max(1, heads))
    weights = hidden * heads * size * 2 + 2 * hidden * kv_heads * size
    kinds = config.get("attn_type_list")
    if isinstance(kinds, list) and 0 in kinds:
        # MiniMax-M1's lightning attention: queries, keys, values, output gate and output of full width; it keeps a
        # state of fixed size in place of a cache (transformers models/minimax/modeling_minimax.py; the sum is the
        # published 456 billion).
        if len(kinds) != layers:
            raise Unmeasured("attn_type_list is not as long as the model")
        linear = sum(kind == 0 for kind in kinds)
        weights = (linear * 5 * hidden * heads * size + (layers - linear) * weights) // layers
        return weights, 2.0 * kv_heads * size * (layers - linear) / layers, kv_heads
    return weights, 2.0 * kv_heads * size, kv_heads


def _compressed_attention(
    config: Mapping[str, Any], layers: int, hidden: int, heads: int
) -> tuple[int, float, int]:
    """DeepSeek-V4: one latent head of keys and values, compressed by a ratio of each layer; grouped output.

    vLLM 0.33.0 models/deepseek_v4/attention.py (fused_wqa_wkv, wq_b, wo_a, wo_b, indexer of ratio 4),
    compressor.py (two projections, twice as wide at ratio 4). A cached entry takes 584 bytes, so 292 values of 2."""
    size, low = _int(config, "head_dim"), _int(config, "q_lora_rank")
    groups, rank = _int(config, "o_groups"), _int(config, "o_lora_rank")
    ratios = config.get("compress_ratios")
    if not isinstance(ratios, list) or len(ratios) < layers:
        raise Unmeasured("config.json has no compress_ratios for its layers")
    weights = hidden * (low + size) + low * heads * size + heads * size * rank + groups * rank * hidden
    more, kept = 0, 0.0
    for ratio in ratios[:layers]:
        if not isinstance(ratio, int) or not 0 <= ratio < 1 << 20:
            raise Unmeasured("compress_ratios holds something else than numbers")
        if not ratio:
            continue
        wide = 2 if ratio == 4 else 1
        more += 2 * wide * size * hidden
        kept += 292 / ratio
        if ratio == 4:
            count, index = _int(config, "index_n_heads"), _int(config, "index_head_dim")
            more += low * count * index + hidden * count + 4 * index * hidden
            kept += (index / 2 + 2) / ratio
    return weights + more // max(1, layers), kept / max(1, layers), 0


def quantisation(config: Mapping[str, Any]) -> Quantisation:
    """How the checkpoint stores its weights. Raises Unmeasured for a method that is not known."""
    given = config.get("quantization_config") or config.get("compression_config")
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    plain = DTYPE_BYTES.get(dtype, 2.0)
    if not isinstance(given, Mapping):
        return Quantisation("fp32" if plain == 4 else "bf16", plain, plain, plain)
    method = str(given.get("quant_method", "")).lower()
    if method in ("fp8", "fbgemm_fp8"):
        block = given.get("weight_block_size")
        size = 1 + 4 / FP8_BLOCK if block else 1.0
        if config.get("model_type") == "deepseek_v4" and config.get("expert_dtype", "fp4") == "fp4":
            # 4-bit values with one byte of scale for 32 of them (vLLM 0.33.0 models/deepseek_v4/quant_config.py).
            return Quantisation("fp8, experts mxfp4", 4.25 / 8, size)
        return Quantisation("fp8", size, size)
    if method == "mxfp4":
        # gpt-oss: 4-bit values with one byte of scale for 32 of them; everything but the experts stays bf16.
        return Quantisation("mxfp4", 4.25 / 8, plain)
    if method in ("awq", "gptq", "gptq_marlin", "awq_marlin"):
        bits, group = (
            _int(given, "bits", "w_bit", default=4),
            _int(given, "group_size", "q_group_size", default=128),
        )
        size = bits / 8 + 2.5 / max(group, 1)
        return Quantisation(f"int{bits} (group {group})", size, size)
    if method == "compressed-tensors":
        return _compressed(given, plain)
    if method == "modelopt" or str(given.get("quant_algo", "")).upper() in ("NVFP4", "FP8"):
        if str(given.get("quant_algo", "")).upper() == "FP8":
            return Quantisation("fp8", 1.0, 1.0)
        # NVFP4: 4-bit values, one FP8 scale for 16 of them.
        return Quantisation("nvfp4", 0.5 + 1 / 16, plain)
    raise Unmeasured(f"the quantisation {method or 'of this model'!r} is not counted")


def _compressed(given: Mapping[str, Any], plain: float) -> Quantisation:
    groups = given.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise Unmeasured("compressed-tensors without config_groups is not counted")
    bits, group = _int(weights, "num_bits"), _int(weights, "group_size", default=0)
    size = bits / 8 + (2 / group if group else 0)
    named = given.get("ignore")
    ignored = [str(word) for word in named] if isinstance(named, list) else []
    # Kimi K2 thinking: int4 for the experts alone, attention and shared experts ignored.
    rest = plain if any("attn" in word or (word != "lm_head" and "re:" in word) for word in ignored) else size
    name = f"int{bits}" if weights.get("type") == "int" else f"fp{bits}"
    return Quantisation(f"{name} (group {group})" if group else name, size, rest)
