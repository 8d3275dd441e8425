"""Residual vectors of text, read once for all layers and kept on this machine until the training is done.

Blocks of sequences are files in the cache folder, written one by one, so that a killed run that starts again on the
same machine reads on where it was.

The first position of a sequence is left out: whatever token is there draws attention that finds nothing else, and
carries activations a hundred times the usual (massive activations, Sun et al. 2024, arXiv 2402.17762). So are the few
other tokens that do (`ordinary`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.models.batching import pad, truncated
from tasks.models.layout import after_blocks
from tasks.models.load import LoadedModel
from tasks.places.cache import build_once, cache_root
from tasks.sae import reading

BATCH = 16
"""Sequences in one forward pass. Fixed, since it decides the last bits of the result."""
BLOCK = 4 * BATCH
MASSIVE = 10
"""Tokens whose vector is longer than this many times the median length are left out."""
FOLDER = "harvests"
ABANDONED_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Vectors:
    """Of one layer, all in the model's precision, without massive activations."""

    training: Tensor
    """[n, d]"""
    held_out: Tensor
    """[m, d]"""
    held_out_own: Tensor
    """[m] bool: of the study's texts."""
    massive_share: float
    """Share of all vectors that was left out for its length."""


class Harvest:
    """Files of residual vectors, named by what decides them."""

    def __init__(self, name: str, layers: Sequence[int], read: Sequence[reading.Sequence]) -> None:
        self._name = f"{FOLDER}/{name}"
        self._layers = layers
        self._read = read
        self._blocks = [read[at : at + BLOCK] for at in range(0, len(read), BLOCK)]

    def collect(self, loaded: LoadedModel, on_tokens: Callable[[int], None]) -> None:
        """Read what is not there yet. on_tokens: called with the number of tokens read so far."""
        done = 0
        for number, block in enumerate(self._blocks):
            build_once(self._place(number), lambda folder, block=block: self._save(loaded, block, folder))
            done += sum(len(sequence.tokens) for sequence in block)
            on_tokens(done)

    def vectors(self, layer: int) -> Vectors:
        """One layer's vectors, split as the sequences are."""
        parts = []
        for number in range(len(self._blocks)):
            with safe_open(cache_root() / self._place(number) / "vectors.safetensors", "pt") as file:
                parts.append(file.get_tensor(str(layer)))
        x = torch.cat(parts)
        lengths = torch.tensor([len(sequence.tokens) - 1 for sequence in self._read])
        held_out = torch.tensor([s.held_out for s in self._read]).repeat_interleave(lengths)
        own = torch.tensor([s.own for s in self._read]).repeat_interleave(lengths)
        keep = ordinary(x)
        return Vectors(
            training=x[keep & ~held_out],
            held_out=x[keep & held_out],
            held_out_own=own[keep & held_out],
            massive_share=float((~keep).double().mean()),
        )

    def _place(self, number: int) -> str:
        return f"{self._name}/{number:05d}"

    def _save(self, loaded: LoadedModel, block: Sequence[reading.Sequence], folder: Path) -> None:
        batches = [block[at : at + BATCH] for at in range(0, len(block), BATCH)]
        read = [residuals(loaded, [sequence.tokens for sequence in batch], self._layers) for batch in batches]
        tensors = {str(layer): torch.cat([vectors[layer] for vectors in read]) for layer in self._layers}
        save_file(tensors, folder / "vectors.safetensors")


@torch.no_grad()
def residuals(loaded: LoadedModel, sequences: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
    """layer -> [n, d] in the model's precision on the CPU: the stream after each block at every position but the
    first, sequences one after another. Blocks above the deepest layer do not run."""
    batch = pad(sequences, loaded.pad_id, side="right")
    real = batch.attention_mask.bool()
    real[:, 0] = False
    layout, captured = loaded.layout, {}
    with (
        truncated(layout, max(layers) + 1),
        after_blocks(layout, layers, lambda layer, x: captured.update({layer: x.to("cpu")[real]})),
    ):
        layout.stack(**batch.to(loaded.device).inputs(layout.stack), use_cache=False)
    return captured


def ordinary(x: Tensor) -> Tensor:
    """[n] bool: vectors x [n, d] of at most MASSIVE times their median length."""
    lengths = x.float().norm(dim=1)
    return lengths <= MASSIVE * lengths.median()


def remove(name: str) -> None:
    """Delete the files of the harvest of this name."""
    shutil.rmtree(cache_root() / FOLDER / name, ignore_errors=True)


def remove_abandoned() -> None:
    """Delete what runs left behind that were killed and never finished."""
    for folder in (cache_root() / FOLDER).glob("*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
