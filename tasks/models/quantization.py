"""Checkpoints whose weights are quantized: transformers reads them with the library that each method needs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.quantizers import AutoHfQuantizer

from tasks.models.sources import Source


def method(config: PretrainedConfig) -> str | None:
    """ "bitsandbytes", "mxfp4", "gptq" ...; None for a checkpoint that is not quantized."""
    found = _of(config)
    return None if found is None else str(found.get("quant_method") or "bitsandbytes")


def compute_dtype(config: PretrainedConfig, dtype: torch.dtype) -> torch.dtype:
    """The precision of everything that is not quantized: the checkpoint's own, else `dtype`.

    Scales and packed weights are made for one precision, and another one would break or bend them.
    """
    return dtype if _of(config) is None else (config.get_text_config(decoder=True).dtype or config.dtype or dtype)


def stays_quantized(source: Source, config: PretrainedConfig) -> bool:
    """Whether the weights take no more memory than their files. What cannot run here quantized is dequantized.

    Raises BadInput when the method's library is missing or the machine cannot run it.
    """
    found = _of(config)
    if found is None:
        return False
    named = f"its weights are quantized ({method(config)})"
    if not AutoHfQuantizer.supports_quant_method(found):
        raise source.bad(
            f"{named}, which this version of transformers does not know", "give the model without quantization"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(found), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        raise source.bad(
            f"{named} and cannot be read here ({error})",
            "install or use what that asks for where tasks run, or give the model without quantization",
        ) from error
    return not getattr(quantizer.quantization_config, "dequantize", False)


def _of(config: PretrainedConfig) -> dict[str, Any] | None:
    for holder in (config, config.get_text_config(decoder=True)):
        found = getattr(holder, "quantization_config", None)
        if found:
            return found if isinstance(found, dict) else found.to_dict()
    return None
