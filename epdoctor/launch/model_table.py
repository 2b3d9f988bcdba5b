"""A model's config.json: from --model-config, else from the built-in table by the model's name. Pure.

The table is checks/compat/models_moe.yaml: dated, each row with its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.launch.layout import require_known, text_of
from epdoctor.launch.model import LaunchSet, Server

_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
_NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
_OTHER = re.compile(
    r"(?:^|[-_.])(?:awq|gptq|int4|int8|w4a\d+|w8a\d+|[1-8]bit|bnb|nf4|gguf|q[2-8]|mlx|mxfp[48]|fp4|quant\w*|"
    r"pruned|reap|lite|mini|draft|eagle3?|nextn|mtp)(?=$|[-_.])"
)
"""Words behind a known name that make other weights of it."""


_SMALLER = re.compile(r"\A[\w.]|[-_.](?:flash|air\w?|lite|mini|nano|small|tiny|vl?)(?![a-z0-9])")
"""What makes another model of a known name: GLM-4.5V, GLM-4.7-Flash."""


def names() -> tuple[str, ...]:
    """The models of the table."""
    return tuple(str(name) for row in compat.field("models_moe", "models", list) for name in row["names"])


def short_name(name: str) -> str:
    """Behind the last slash, in lower case; in a Hugging Face cache, the model's own."""
    cached = re.search(r"models--[^/]{1,100}?--([^/]{1,200})", name)
    return (cached[1] if cached else name.rstrip("/").rpartition("/")[2]).lower()


def _row(name: str) -> tuple[Mapping[str, Any], str] | None:
    """The row, and what stands behind the known part of the name."""
    wanted = short_name(name)
    if "distill" in wanted:
        return None
    best: tuple[Mapping[str, Any], str] | None = None
    length = 0
    for row in compat.field("models_moe", "models", list):
        for known in row["names"]:
            text = str(known).lower()
            rest = wanted[len(text) :]
            if wanted.startswith(text) and len(text) > length and not _SMALLER.search(rest):
                best, length = (row, rest), len(text)
    return best


def numbers_row(name: str) -> Mapping[str, Any] | None:
    """The row of a model whatever its quantisation; None: not in the table."""
    found = _row(name)
    return None if found is None else found[0]


def config_by_name(name: str) -> tuple[Mapping[str, Any], str]:
    """(config.json, source) of a model of the table, as its name says it is stored. Raises Unmeasured."""
    found = _row(name)
    if found is None:
        raise Unmeasured(f"the built-in table has no {short_name(name)[:80] or 'such model'}")
    row, rest = found
    config, source = dict(row["config"]), str(row["source"])
    wanted = next(
        (given for word, given in (("nvfp4", _NVFP4), ("fp8", _FP8)) if re.search(rf"[-_.]{word}(?![a-z0-9])", rest)),
        None,
    )  # fmt: skip
    if re.search(r"[-_.](?:bf16|fp16)(?![a-z0-9])", rest):
        config.pop("quantization_config", None)
        config.pop("expert_dtype", None)
        if config.get("o_groups"):
            raise Unmeasured(f"how {short_name(name)[:80]} is stored is not in the table")
    elif _OTHER.search(rest) or (wanted is not None and row.get("variants") is False):
        raise Unmeasured(f"how {short_name(name)[:80]} is quantised is not in the table")
    elif wanted is not None:
        config["quantization_config"] = wanted
    return config, source


def config_of(launch: LaunchSet, server: Server) -> tuple[Mapping[str, Any], str, str]:
    """(config.json, source, name) of what a server serves, with --quantization on top. Raises Unmeasured."""
    name = ""
    option = server.option("model")
    if server.model is not None:
        name = require_known(server.model, "the model")
    elif option is not None:
        name = require_known(option.value, option.written)
    if launch.model_config is not None:
        config, source = launch.model_config, "--model-config"
    elif not name:
        raise Unmeasured(f"{server.location}: no model is named")
    else:
        try:
            config, source = config_by_name(name)
        except Unmeasured as reason:
            raise Unmeasured(f"{server.location}: {reason} (--model-config config.json)") from reason
    if server.option("hf-overrides") is not None:
        raise Unmeasured(f"{server.location}: --hf-overrides changes the model's configuration")
    method = text_of(server, "quantization").lower()
    if method and not config.get("quantization_config"):
        if method != "fp8":
            raise Unmeasured(f"{server.location}: --quantization {method[:40]} of unquantised weights")
        # Online quantisation, one scale a tensor; embeddings stay (vLLM docs/features/quantization).
        config = {**config, "quantization_config": {"quant_method": "fp8"}}
    return config, source, name
