"""The rotary embedding of a GGUF file, in transformers' terms: base, scaling, and factors kept as tensors. No torch.

llama.cpp divides the frequency of pair i by factor i of `rope_freqs.weight`, in which its converter keeps Llama 3's
scaling; Phi-3 has one set of factors for short contexts and one for long.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tasks.models.gguf_header import GgufFile
from tasks.models.sources import Source

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = {FREQUENCIES, LONG, SHORT}
"""Tensors that are read here."""

SCALING = {
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
"""Keys that are read here."""

_LOW, _HIGH = 1.0, 4.0
"""`low_freq_factor` and `high_freq_factor` of every Llama 3 model."""


def rope_parameters(
    source: Source, file: GgufFile, given: dict[str, Any], rotary: int, head_dim: int
) -> dict[str, Any]:
    """transformers' `rope_parameters`. given: the architecture's keys without its name; rotary: dimensions rotated.

    Raises BadInput for a scaling that can't be expressed.
    """
    base = float(given.get("rope.freq_base", 10000.0))
    scaling = _scaling(source, file, given)
    if (factors := _factors(file, FREQUENCIES)) is not None:
        if len(factors) != rotary // 2 or scaling["rope_type"] not in ("default", "linear"):
            raise source.bad(
                f"its {FREQUENCIES} has {len(factors)} factors for {rotary} rotated dimensions and scaling "
                f"{scaling['rope_type']}",
                "use the model in transformers format",
            )
        scaling = _of_factors(factors * scaling.get("factor", 1.0), base, given)
    parameters = {"rope_theta": base, **scaling}
    if rotary != head_dim:
        parameters["partial_rotary_factor"] = rotary / head_dim
    if file.architecture == "gemma3":  # scaling is of the global attention alone
        local = {"rope_type": "default", "rope_theta": float(given.get("rope.freq_base_swa", 10000.0))}
        return {"full_attention": parameters, "sliding_attention": local}
    return parameters


def _scaling(source: Source, file: GgufFile, given: dict[str, Any]) -> dict[str, Any]:
    factor = float(given.get("rope.scaling.factor") or given.get("rope.scale_linear") or 0.0)
    kind = given.get("rope.scaling.type", "linear")
    original = given.get("rope.scaling.original_context_length")
    attention = given.get("rope.scaling.attn_factor")
    found: dict[str, Any]
    if LONG in file.tensors or SHORT in file.tensors:
        found = {"rope_type": "longrope", "original_max_position_embeddings": original}
        found |= {"long_factor": _listed(file, LONG), "short_factor": _listed(file, SHORT)}
        if None in found.values():
            raise _unexpressed(source, "longrope without its two lists of factors and its original length")
        return found if attention is None else found | {"attention_factor": float(attention)}
    if kind == "yarn" and factor:
        found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        if original is None:
            raise _unexpressed(source, "yarn without its original length")
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if f"rope.scaling.{key}" in given:
                found[name] = float(given[f"rope.scaling.{key}"])
        if attention is not None:  # llama.cpp multiplies it with yarn's own
            found["attention_factor"] = float(attention) * (0.1 * math.log(factor) + 1.0)
        return found
    if attention not in (None, 1.0) or kind not in ("none", "linear", "yarn"):
        raise _unexpressed(source, f"{kind} (attn_factor {attention})")
    if kind == "none" or factor in (0.0, 1.0):
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _of_factors(factors: np.ndarray, base: float, given: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling where it gives these factors, else the factors themselves.

    `longrope` with one list for all lengths divides by exactly these; Llama 3's form is known to more programs.
    """
    wavelengths = 2 * math.pi * base ** (np.arange(len(factors)) / len(factors))
    factor = float(factors.max())
    between = (factors > 1.0 + 1e-6) & (factors < factor * (1 - 1e-6))
    if between.any():  # 1 / f = (1 - s) / factor + s, with s = (length / wavelength - low) / (high - low)
        s = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        length = float(np.median(wavelengths[between] * (s * (_HIGH - _LOW) + _LOW)))
    else:
        length = float(given.get("rope.scaling.original_context_length", 8192))
    llama3 = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": round(length),
    }
    s = np.clip((round(length) / wavelengths - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    if np.allclose(1 / ((1 - s) / factor + s), factors, rtol=1e-5, atol=0.0):
        return llama3
    listed = factors.tolist()
    return {
        "rope_type": "longrope",
        "long_factor": listed,
        "short_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": given["context_length"],
    }


def _factors(file: GgufFile, name: str) -> np.ndarray | None:
    return file.tensors[name].data.astype(np.float64).ravel() if name in file.tensors else None


def _listed(file: GgufFile, name: str) -> list[float] | None:
    factors = _factors(file, name)
    return None if factors is None else factors.tolist()


def _unexpressed(source: Source, scaling: str) -> Exception:
    return source.bad(f"its rope scaling can't be honoured here: {scaling}", "use the model in transformers format")
