"""What a sweep compares models by, from their headers alone: parameters and quantization."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from tasks.errors import BadInput
from tasks.models.experts import parameter_counts
from tasks.models.gguf_header import weight_type
from tasks.models.sources import model_source
from tasks.models.spec import ModelRef

_PLAIN = {"F64", "F32", "F16", "BF16"}
_REMEDY = "use a model that this version of transformers supports without code of its own"


def count_parameters(ref: ModelRef, config: PretrainedConfig) -> tuple[int, int]:
    """(all, active for one token). Raises BadInput for an architecture that can't be built, and so not loaded."""
    try:
        return parameter_counts(config)
    except BadInput:
        raise
    except Exception as error:  # an architecture's own code runs here, and may fail in its own way
        problem = f"transformers cannot build a {config.model_type} ({type(error).__name__}: {error})"
        raise model_source(ref).bad(problem, _REMEDY) from error


def quantization(ref: ModelRef, config: PretrainedConfig) -> str | None:
    """How the stored weights are quantized, such as "GGUF Q4_1", "mxfp4" or "gptq 4-bit"; None where they are not."""
    source = model_source(ref)
    if source.gguf is None:
        return _of_config(getattr(config, "quantization_config", None))
    name = weight_type(source)
    return None if name in _PLAIN else f"GGUF {name}"


def _of_config(settings: Any) -> str | None:
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    bits = settings.get("bits", settings.get("w_bit"))
    for key, of_it in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        bits = of_it if settings.get(key) else bits
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method") or "unnamed"))
    return f"{method} {bits}-bit" if bits else method
