"""GGUF files, dequantized once into an ordinary model folder of the cache.

transformers knows what llama.cpp's converter did to each tensor; which tensors there are is checked here: every one
of the file has its place in the model, and every weight of the model comes from the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.models.auto import CONFIG_MAPPING

from tasks.models import gguf_header, gguf_metadata, gguf_tokenizer
from tasks.models.fingerprint import source_fingerprint
from tasks.models.gguf_header import GgufFile
from tasks.models.gguf_rope import FACTORS
from tasks.models.sources import Source
from tasks.models.spec import Dtype
from tasks.places.cache import build_once

_OTHER_FORMAT = "use the model in transformers format"


def converted(source: Source, dtype: Dtype) -> Path:
    """Folder with the weights in `dtype` (safetensors) and the tokenizer.

    Takes some ten seconds per 100 MB the first time. Raises BadInput for what can't be read or would be read wrongly,
    before weights are dequantized where that can be known.
    """

    def convert(folder: Path) -> None:
        file = gguf_header.read(source)
        config = _configuration(source, file, dtype)
        tokenizer = gguf_tokenizer.build(source, file)
        model = _model(source, file, config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    name = f"gguf/{source_fingerprint(source)}-{dtype}-transformers-{transformers.__version__}"
    return build_once(name, convert)


def _configuration(source: Source, file: GgufFile, dtype: Dtype) -> PretrainedConfig:
    arguments = gguf_metadata.configuration(source, file)
    try:
        config = CONFIG_MAPPING[arguments.pop("model_type")](**arguments, dtype=dtype)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the architecture's own code runs here, and may fail in its own way
        raise source.bad(f"its metadata makes no model of transformers ({error})", _OTHER_FORMAT) from error
    return config


def _model(source: Source, file: GgufFile, config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    _check_names(source, file, places)
    read: dict[str, torch.Tensor] = {}
    for name, tensor in file.tensors.items():
        if name in FACTORS:
            continue
        found = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=name,
            tensor_key_mapping=places,
            parsed_parameters={"tensors": read},
        )
        if found.name is not None:  # else the processor has put it into `read`, beside others
            read[places[found.name]] = torch.from_numpy(found.weights.copy()).to(config.dtype)
    _check_weights(source, model, read)
    model.load_state_dict({name: weight.to(config.dtype) for name, weight in read.items()}, strict=False, assign=True)
    model.tie_weights()
    return model


def _check_names(source: Source, file: GgufFile, places: dict[str, str]) -> None:
    known = {*places, *(f"{name}.weight" for name in places), *FACTORS, "output.weight"}
    if lost := sorted(set(file.tensors) - known):
        raise source.bad(
            f"{len(lost)} of its {len(file.tensors)} tensors have no place in a {file.architecture} model of "
            f"transformers, such as {lost[0]}",
            _OTHER_FORMAT,
        )


def _check_weights(source: Source, model: PreTrainedModel, read: dict[str, torch.Tensor]) -> None:
    expected: dict[str, Any] = dict(model.state_dict())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    absent = sorted(set(expected) - set(read) - ({"lm_head.weight"} if tied else set()))
    if absent:
        raise source.bad(
            f"the file lacks {len(absent)} of the model's {len(expected)} weights, such as {absent[0]}",
            "download the file again, or with all its parts",
        )
    for name, weight in read.items():
        if name not in expected:
            raise source.bad(f"its {name} has no place in the model", _OTHER_FORMAT)
        if weight.shape != expected[name].shape:
            shapes = ["x".join(map(str, shape)) for shape in (weight.shape, expected[name].shape)]
            raise source.bad(f"its {name} is {shapes[0]}, and by its metadata {shapes[1]}", "download the file again")
