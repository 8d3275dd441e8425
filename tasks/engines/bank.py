"""The bank: every edit of a study as one row, built once from SAEs of any format.

A row says where an edit happens (layer), how the feature's activation is read there
(f = pre if pre > theta else 0, with pre = h . u + b) and along which direction a change is written (w):
h' = h + (value - f) w. A control row reads the same feature and writes along a random direction of equal norm, so
that both edits move the residual stream by the same distance.

All tensors are float32, in raw residual units. R = rows, d = d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from tasks.sae.sae import SAE, TopK

FEATURE, RANDOM = 0, 1


@dataclass(frozen=True, eq=False)
class Bank:
    layer: Tensor
    """[R] int64, 0-based: the edit happens on the output of this block."""
    feature: Tensor
    """[R] int64: index in the layer's SAE."""
    kind: Tensor
    """[R] int64: FEATURE or RANDOM (control direction)."""
    full_encode: Tensor
    """[R] bool: the gate needs the whole dictionary (TopK), so that f comes from the SAE itself."""
    u: Tensor
    """[R, d] encoder rows"""
    b: Tensor
    """[R] encoder biases"""
    theta: Tensor
    """[R] thresholds, strict"""
    w: Tensor
    """[R, d] directions written"""

    def __len__(self) -> int:
        return self.layer.shape[0]

    @property
    def d_model(self) -> int:
        return self.u.shape[1]

    @property
    def layers(self) -> list[int]:
        return sorted(set(self.layer.tolist()))

    def to(self, device: torch.device | str) -> Bank:
        return Bank(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def tensors(self) -> dict[str, Tensor]:
        """For a safetensors file; `from_tensors` reads it back."""
        return {f.name: getattr(self, f.name).contiguous() for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Bank:
        return cls(**{f.name: torch.as_tensor(tensors[f.name]) for f in fields(cls)})

    @classmethod
    def build(cls, sae_of: Callable[[int], SAE], features: Iterable[tuple[int, int]]) -> Bank:
        """A feature row for each (layer, feature), in the order given."""
        wanted = list(features)
        rows: list[dict[str, Tensor] | None] = [None] * len(wanted)
        for layer in sorted({layer for layer, _ in wanted}):
            sae = sae_of(layer)
            for i, (of_layer, feature) in enumerate(wanted):
                if of_layer == layer:
                    rows[i] = _row(sae, feature)
        return cls(**{f.name: torch.stack([row[f.name] for row in rows]) for f in fields(cls)})

    def with_random_controls(self, seed: int) -> Bank:
        """This bank of R rows followed by one control row for each, so that row i's control is row R + i.

        The direction of a control is uniform on the sphere of radius |w|, drawn from (seed, layer, feature).
        """
        w = torch.stack(
            [
                _random_direction(seed, layer, feature, row)
                for layer, feature, row in zip(self.layer.tolist(), self.feature.tolist(), self.w, strict=True)
            ]
        )
        both = {f.name: torch.cat([getattr(self, f.name)] * 2) for f in fields(self)}
        both["w"] = torch.cat([self.w, w])
        both["kind"] = torch.cat([self.kind, torch.full_like(self.kind, RANDOM)])
        return Bank(**both)


def _row(sae: SAE, feature: int) -> dict[str, Tensor]:
    if not 0 <= feature < sae.d_sae:
        raise IndexError(f"feature {feature} of layer {sae.layer}: {sae.name} has features 0 to {sae.d_sae - 1}")
    full = isinstance(sae.gate, TopK)
    return {
        "layer": torch.tensor(sae.layer),
        "feature": torch.tensor(feature),
        "kind": torch.tensor(FEATURE),
        "full_encode": torch.tensor(full),
        "u": sae.W_enc[:, feature].float(),
        "b": sae.b_enc[feature].float(),
        "theta": torch.tensor(0.0) if full else sae.gate.theta[feature].float(),
        "w": sae.W_dec[feature].float(),
    }


def _random_direction(seed: int, layer: int, feature: int, like: Tensor) -> Tensor:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, layer, feature])))
    direction = torch.from_numpy(rng.standard_normal(like.shape[0])).float()
    return direction * (like.norm() / direction.norm())
