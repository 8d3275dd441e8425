"""The canonical sparse autoencoder: every public format is folded into these five tensors and one gate.

Shapes use d = d_model and F = d_sae. With x a raw residual-stream vector (block output, no scaling):

    pre   = x @ W_enc + b_enc        every input centring and scaling is folded into W_enc and b_enc
    f     = gate(pre)
    x_hat = f @ W_dec + b_dec        every output scaling is folded into W_dec and b_dec

The unit of f is named `raw_residual`: f_j * W_dec[j] is a vector in the residual stream. Activations, patch
values and means are only comparable within one convention, so whatever is stored carries this name.

Arithmetic is float32 whatever the storage dtype of the two matrices. Biases and thresholds stay float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CONVENTION = "raw_residual"


@dataclass(frozen=True, eq=False)
class Threshold:
    """f = pre where pre > theta, else 0 (strict). Each latent depends on its own pre-activation only.

    ReLU is theta = 0. JumpReLU stores theta. A BatchTopK dictionary at inference stores one theta for all
    latents. A gated dictionary folds into it too (see `loaders`).
    """

    theta: Tensor
    """[F] float32, at least 0: no public format lets a negative activation through."""

    kind = "threshold"

    def __call__(self, pre: Tensor) -> Tensor:
        """pre [..., F] float32 -> f [..., F]."""
        return torch.where(pre > self.theta, pre, 0.0)

    def to(self, device: torch.device | str) -> Threshold:
        return Threshold(self.theta.to(device))


@dataclass(frozen=True, eq=False)
class TopK:
    """The k largest of relu(pre) of each token, the rest 0. Needs the pre-activations of every latent."""

    k: int

    kind = "topk"

    def __call__(self, pre: Tensor) -> Tensor:
        """pre [..., F] float32 -> f [..., F]."""
        top = pre.relu().topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values)

    def to(self, device: torch.device | str) -> TopK:
        return self


Gate = Threshold | TopK


@dataclass(frozen=True, eq=False)
class SAE:
    """A dictionary for the residual stream after block `layer` (0-based), in raw residual units."""

    layer: int
    W_enc: Tensor
    """[d, F]"""
    b_enc: Tensor
    """[F] float32"""
    W_dec: Tensor
    """[F, d]"""
    b_dec: Tensor
    """[d] float32"""
    gate: Gate
    name: str
    """Where it came from, for people: "llama_scope:fnlp/...:L15R-8x"."""
    convention: str = CONVENTION

    def __post_init__(self) -> None:
        d, width = self.W_enc.shape
        expected = {"b_enc": (width,), "W_dec": (width, d), "b_dec": (d,)}
        for field, shape in expected.items():
            found = tuple(getattr(self, field).shape)
            if found != shape:
                raise ValueError(f"{self.name}: {field} has shape {found}, W_enc {(d, width)} needs {shape}")
        if isinstance(self.gate, Threshold) and self.gate.theta.shape != (width,):
            raise ValueError(f"{self.name}: theta has shape {tuple(self.gate.theta.shape)}, needs {(width,)}")
        if isinstance(self.gate, TopK) and not 0 < self.gate.k <= width:
            raise ValueError(f"{self.name}: k is {self.gate.k}, needs 1..{width}")

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as held on the device."""
        tensors = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        if isinstance(self.gate, Threshold):
            tensors.append(self.gate.theta)
        return sum(t.nbytes for t in tensors)

    def pre_activations(self, x: Tensor) -> Tensor:
        """x [..., d] -> pre [..., F] float32."""
        return x.float() @ self.W_enc.float() + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d], raw residual stream -> f [..., F] float32."""
        return self.gate(self.pre_activations(x))

    def encode_features(self, x: Tensor, index: Tensor) -> Tensor:
        """The activations of a few latents: x [..., d], index [n] -> f [..., n] float32.

        Equal to `encode(x)[..., index]` up to the rounding of a matrix product of another shape. A TopK gate
        has no such shortcut (whether a latent fires depends on all others), so it encodes in full.
        """
        if isinstance(self.gate, TopK):
            return self.encode(x)[..., index]
        pre = x.float() @ self.W_enc[:, index].float() + self.b_enc[index]
        return torch.where(pre > self.gate.theta[index], pre, 0.0)

    def decode(self, f: Tensor) -> Tensor:
        """f [..., F] -> x_hat [..., d] float32, raw residual stream."""
        return f.float() @ self.W_dec.float() + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)): x [..., d] -> x_hat [..., d] float32."""
        return self.decode(self.encode(x))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SAE:
        """A copy on another device; `dtype` applies to the two matrices only."""
        device = self.device if device is None else torch.device(device)
        return replace(
            self,
            W_enc=self.W_enc.to(device, dtype),
            b_enc=self.b_enc.to(device),
            W_dec=self.W_dec.to(device, dtype),
            b_dec=self.b_dec.to(device),
            gate=self.gate.to(device),
        )
