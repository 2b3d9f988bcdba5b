"""The few numbers of a model that the back ends' limits depend on: from --model-config, else a built-in table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.json_options import merged
from epdoctor.launch.layout import require_known
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.launch.model_table import numbers_row

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "moe_topk", "num_experts_per_token", "experts_per_token", "top_k_experts")


@dataclass(frozen=True)
class ModelNumbers:
    hidden_size: int
    experts: int
    """Routed experts of a layer."""
    top_k: int | None
    """Experts per token; None: not said."""
    source: str


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
            return value
    return None


def numbers_from(config: Mapping[str, Any], source: str) -> ModelNumbers:
    """From a config.json (Hugging Face; a multimodal one has them in text_config). Raises Unmeasured."""
    inner = config.get("text_config")
    layers = [config, *([inner] if isinstance(inner, Mapping) else [])]
    for names in layers:
        experts, hidden = _number(names, _EXPERTS), _number(names, ("hidden_size",))
        if experts is not None and hidden is not None:
            return ModelNumbers(hidden, experts, _number(names, _TOP_K), source)
    raise Unmeasured(f"{source} does not say hidden_size and the number of experts")


def model_numbers(launch: LaunchSet, server: Server) -> ModelNumbers:
    """Raises Unmeasured where neither --model-config nor the table knows the model."""
    if launch.model_config is not None:
        return numbers_from(launch.model_config, "--model-config")
    name = ""
    option = server.option("model")
    if server.model is not None:
        name = require_known(server.model, "the model")
    elif option is not None:
        name = require_known(option.value, option.written)
    row = numbers_row(name)
    if row is not None:
        return numbers_from(row["config"], str(row["source"]))
    raise Unmeasured(
        f"{server.location}: hidden size and experts of {name or 'the model'} (--model-config config.json)"
    )


def redundant_experts(server: Server) -> int:
    """num_redundant_experts of --eplb-config; 0 where there is none or it is no number."""
    config = merged(server, "eplb-config")
    if config is None or config.values is None:
        return 0
    value = config.values.get("num_redundant_experts", 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 20 else 0


def attention_heads(launch: LaunchSet, server: Server) -> int:
    """num_attention_heads, which a tensor-parallel group divides; 0 where nothing says it."""
    config: Mapping[str, Any] | None = launch.model_config
    if config is None:
        known = server.model is not None and server.model.known
        row = numbers_row(server.model.text) if known and server.model is not None else None
        config = None if row is None else row["config"]
    inner = config.get("text_config") if config is not None else None
    for names in (config, inner):
        heads = _number(names, ("num_attention_heads",)) if isinstance(names, Mapping) else None
        if heads is not None:
            return heads
    return 0
