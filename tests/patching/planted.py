"""A tiny model in which exactly one known feature drives a choice, with its dictionaries and its scenario.

The model is a random Llama whose head is arranged so that the first answer token is mostly "1" or "2", about evenly.
On layer 3 (the last), feature `PLANTED` writes along a direction g that the head reads as "2 instead of 1"; on
layer 1, and for every other feature of layer 3, nothing written changes that balance: layer 3's other features write
orthogonally to what the head reads for both choices, layer 1's features write nothing at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from tasks.models.batching import residuals_at_last_token
from tasks.models.load import load
from tasks.models.spec import ModelRef
from tests.models.tiny import save_tiny_model

LAYERS = (1, 3)
PLANTED_LAYER, PLANTED = 3, 11
D_SAE = 24
N_TRIALS = 80
PROMPTS = {"calm": "The player has 140 dollars and may stop.", "tense": "The player wants to win it all back."}
PREFIX = "\nChoice: "
LOW = [f"Game history: Round {n}: Bet $10, Win. The player has {n}0 dollars and may stop." for n in range(1, 17)]
HIGH = [f"Round {n}: Loss. The risk is too high to win it all back with ${n}0" for n in range(1, 17)]


@dataclass(frozen=True)
class PlantedStudy:
    model: Path
    saes: str
    """Location with {layer}."""
    scenario: Path

    def settings(self, **overrides) -> dict:
        """Parameters of the flow, small enough for a test."""
        return {
            "model": {"source": str(self.model)},
            "saes": {"kind": "saelens", "location": self.saes, "layers": list(LAYERS)},
            "scenario": {"source": str(self.scenario)},
            "contrast": {"prompts_per_group": 16, "top_k_per_layer": 6},
            "selection": {"candidates": "all"},
            "trials": {
                "trials_per_cell": N_TRIALS,
                "baseline_trials": N_TRIALS,
                "max_new_tokens": 3,
                "temperature": 1.0,
            },
            "confirm": {"trials_per_cell": N_TRIALS},
        } | overrides


def plant(folder: Path, effect: float = 6.0, **config) -> PlantedStudy:
    """Write model, SAEs and scenario. effect 0 plants nothing. config: arguments of the model's configuration."""
    model_folder = save_tiny_model(folder / "model", **config)
    loaded = load(ModelRef(source=str(model_folder)))
    encode = lambda text: loaded.tokenizer(text).input_ids  # noqa: E731
    low, high, prompts = (
        residuals_at_last_token(loaded, [encode(text + PREFIX) for text in texts], [PLANTED_LAYER])[:, 0]
        for texts in (LOW, HIGH, PROMPTS.values())
    )
    norm, head = loaded.layout.final_norm, loaded.layout.lm_head.weight
    with torch.no_grad():
        read = norm(prompts)
        one, two = (encode(text)[-1] for text in ("1", "2"))
        # g reads nothing of the prompts themselves, so that both choices start about even.
        g = _orthogonal(torch.randn(head.shape[1], generator=torch.Generator().manual_seed(5)), read)
        level = torch.linalg.lstsq(read, torch.full((len(read), 1), 8.0)).solution[:, 0]
        head[one], head[two] = level - effect / 2 * g, level + effect / 2 * g
    loaded.model.save_pretrained(model_folder)

    for layer in LAYERS:
        _save_sae(folder / "saes" / f"layer_{layer}", layer, loaded, low, high, g, torch.stack([head[one], head[two]]))
    scenario = folder / "planted.yaml"
    scenario.write_text(yaml.safe_dump(_scenario(), sort_keys=False))
    return PlantedStudy(model_folder, str(folder / "saes" / "layer_{layer}"), scenario)


def _save_sae(folder: Path, layer: int, loaded, low, high, g, choice_rows) -> None:
    d = loaded.layout.d_model
    generator = torch.Generator().manual_seed(layer)
    gain = loaded.layout.final_norm.weight
    w_enc = torch.randn(d, D_SAE, generator=generator) / d**0.5
    b_enc = torch.zeros(D_SAE)
    w_dec = torch.zeros(D_SAE, d)
    if layer == PLANTED_LAYER:
        written = _orthogonal(torch.randn(D_SAE, d, generator=generator), choice_rows * gain)
        w_dec = torch.nn.functional.normalize(written, dim=-1)
        w_dec[PLANTED] = g / gain / (g / gain).norm() * loaded_scale(low)
        # The planted feature is off on prompts of the low group and about 1 on those of the high group.
        apart = torch.linalg.lstsq(
            torch.cat([low, high]), torch.cat([-torch.ones(len(low)), torch.ones(len(high))])[:, None]
        )
        w_enc[:, PLANTED] = apart.solution[:, 0]
    folder.mkdir(parents=True)
    save_file(
        {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec.contiguous(), "b_dec": torch.zeros(d)},
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "standard",
        "d_in": d,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))


def loaded_scale(stream: torch.Tensor) -> torch.Tensor:
    """A third of the stream's usual length: what a change must have to matter after the final norm."""
    return stream.norm(dim=-1).mean() / 3


def _orthogonal(vectors: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """vectors [..., d] without their parts along the rows of `to` [n, d], of unit length if one vector."""
    basis = torch.linalg.qr(to.T)[0]
    rest = vectors - vectors @ basis @ basis.T
    return rest / rest.norm() if rest.ndim == 1 else rest


def _scenario() -> dict:
    return {
        "name": "planted",
        "description": "Which feature makes the model say 2?",
        "prompts": PROMPTS,
        "frame": {"answer_prefix": PREFIX},
        "choices": {"one": {"first_tokens": ["1"]}, "two": {"first_tokens": ["2"]}},
        "contrast": {"low": {"name": "calmed", "prompts": LOW}, "high": {"name": "tensed", "prompts": HIGH}},
        "parser": {
            "lead": "",
            "rules": {"says_one": {"choice": "one", "pattern": "1"}, "says_two": {"choice": "two", "pattern": "2"}},
        },
    }
