"""Quantized checkpoints: the numbers that their format means, in their own precision; or what is missing to read it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import BadInput
from tasks.models.experts import moe_blocks, routing
from tasks.models.load import load
from tasks.models.placement import place
from tasks.models.points import norm_points, watching
from tasks.models.sources import model_source
from tasks.models.spec import ModelRef
from tests.models.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("cache")
IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])
BLOCK = 32
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The sixteen numbers of four bits, E2M1."""


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite(folder, weights, quantization):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, dtype="bfloat16", quantization_config=quantization)


def save_fp8(folder, name):
    """A checkpoint in blocks of FP8 with a scale each, as DeepSeek and Qwen publish them, and the same in bfloat16."""
    packed, plain = (save_tiny_model(folder / kind, name) for kind in ("packed", "plain"))
    weights, unpacked = {}, {}
    for key, w in load_file(packed / "model.safetensors").items():
        if w.ndim == 2 and "proj" in key:
            blocks = w.unflatten(0, (-1, BLOCK)).unflatten(-1, (-1, BLOCK))  # [rows, 32, columns, 32]
            scale = blocks.abs().amax(dim=(1, 3)) / 448
            small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            weights |= {key: small.reshape(w.shape), f"{key}_scale_inv": scale}
            unpacked[key] = (small.float() * scale[:, None, :, None]).reshape(w.shape).bfloat16()
        else:
            weights[key] = unpacked[key] = w.bfloat16()
    rewrite(packed, weights, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]})
    save_file(unpacked, plain / "model.safetensors", metadata={"format": "pt"})
    return packed, plain


def save_mxfp4(folder):
    """GPT-OSS as published: experts in four bits, 32 of which share a power of two; and the same in bfloat16."""
    packed, plain = (save_tiny_model(folder / kind, "gpt_oss") for kind in ("packed", "plain"))
    generator = torch.Generator().manual_seed(0)
    weights, unpacked = {}, {}
    for key, w in load_file(packed / "model.safetensors").items():
        if "experts" in key and w.ndim == 3:
            n, rows, columns = w.shape
            pairs = torch.randint(0, 256, (n, columns, rows // 32, 16), dtype=torch.uint8, generator=generator)
            scales = torch.randint(120, 126, (n, columns, rows // 32), dtype=torch.uint8, generator=generator)
            weights |= {f"{key}_blocks": pairs, f"{key}_scales": scales}
            numbers = torch.stack([FP4[(pairs & 15).long()], FP4[(pairs >> 4).long()]], dim=-1).flatten(-2)
            scaled = numbers * 2.0 ** (scales.float()[..., None] - 127)
            unpacked[key] = scaled.flatten(2).transpose(1, 2).contiguous().bfloat16()
        else:
            weights[key] = unpacked[key] = w.bfloat16()
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    rewrite(packed, weights, {"quant_method": "mxfp4", "modules_to_not_convert": kept})
    save_file(unpacked, plain / "model.safetensors", metadata={"format": "pt"})
    return packed, plain


def save(folder, name):
    return save_mxfp4(folder) if name == "gpt_oss" else save_fp8(folder, name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "glm4_moe", "gpt_oss"])
def test_a_quantized_checkpoint_is_the_model_that_its_numbers_mean(name, dtype, tmp_path):
    packed, plain = save(tmp_path, name)
    loaded = load(ModelRef(source=str(packed), dtype=dtype))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    expected = load(ModelRef(source=str(plain), dtype="bfloat16"))
    assert torch.equal(loaded.model(IDS).logits, expected.model(IDS).logits)


@pytest.mark.parametrize("name", ["glm4_moe", "gpt_oss"])
def test_points_and_experts_of_a_quantized_model(name, tmp_path):
    loaded = load(ModelRef(source=str(save(tmp_path, name)[0])))
    points, blocks = norm_points(loaded.model, loaded.layout), moe_blocks(loaded.layout)
    seen, routed = [], []
    with watching(points, lambda i, x: seen.append(x.dtype)), routing(blocks, routed.append):
        loaded.model(IDS)
    assert seen == [torch.bfloat16] * 8
    assert [r.layer for r in routed] == ([1, 2, 3] if name == "glm4_moe" else [0, 1, 2, 3])


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_quantized_model_that_stays_on_disk(name, tmp_path):
    ref = ModelRef(source=str(save(tmp_path, name)[0]))
    whole = load(ref)
    size = sum(p.nbytes for p in whole.model.parameters())
    where = place(model_source(ref), whole.model.config, torch.bfloat16, {}, size // 2)
    assert "disk" in where.values()
    assert torch.equal(load(ref, where).model(IDS).logits, whole.model(IDS).logits)


@pytest.mark.parametrize(
    ("quantization", "install"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "pip install -U bitsandbytes"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "pip install -U bitsandbytes"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "pip install gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "pip install compressed-tensors"),
    ],
)
def test_a_missing_library_is_named_before_weights_are_read(tiny_folder, tmp_path, quantization, install):
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"none.of.the.models": torch.zeros(1)}, tmp_path / "model.safetensors")
    edit_config(tmp_path, quantization_config=quantization)
    with pytest.raises(BadInput, match=f"its weights are quantized .* cannot be read here .*{install}") as caught:
        load(ModelRef(source=str(tmp_path)))
    assert caught.value.field == "model.source"


@pytest.mark.parametrize(
    ("quant_method", "message"),
    [
        ("spqr", r"quantized \(spqr\) and cannot be read here \(GPU is required"),
        ("modelopt", r"quantized \(modelopt\), which this version of transformers does not know"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may run it")
def test_what_this_machine_cannot_run_is_said(tiny_folder, tmp_path, quant_method, message):
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit_config(tmp_path, quantization_config={"quant_method": quant_method})
    with pytest.raises(BadInput, match=message):
        load(ModelRef(source=str(tmp_path)))
