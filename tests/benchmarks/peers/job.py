"""What every peer is asked to do, and how its time is taken. Imports torch and safetensors alone.

A job is a folder with `job.json` (model folder, dtype, prompts, number of new tokens) and `edits.safetensors`: one row
per trial, that sets one SAE feature of one layer at the last prompt token and at every generated one,
h' = h + (value - f) w with f = h . u + b where that exceeds theta, else 0. All trials decode greedily and ignore the
end-of-text token, so that every peer generates the same number of tokens. All trials of a round have the same prompt
(who can, computes it once), and each round has another one (nobody profits from a cache of the round before).

A peer is a module that is run as `python -m tests.benchmarks.peers.NAME JOB_FOLDER RESULT_FILE` in an environment of
its own. It may offer several ways of doing the job. The first prompt is each way's warm-up, whose tokens are compared;
the others are timed. Loading is not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Edits:
    """One row per trial."""

    layer: Tensor
    """[n] int64, 0-based: the edit happens on the output of this block"""
    value: Tensor
    """[n] float32"""
    u: Tensor
    """[n, d] float32"""
    b: Tensor
    """[n] float32"""
    theta: Tensor
    """[n] float32"""
    w: Tensor
    """[n, d] float32"""

    def __len__(self) -> int:
        return self.layer.shape[0]

    def only(self, trial: int) -> Edits:
        """The row of one trial."""
        return Edits(**{name: t[trial : trial + 1].clone() for name, t in vars(self).items()})

    def of_layers(self) -> Iterator[tuple[int, Tensor]]:
        """(layer, its trials [m] int64) for each layer that has some."""
        for layer in sorted(set(self.layer.tolist())):
            yield layer, (self.layer == layer).nonzero().flatten()

    def apply(self, h: Tensor, trials: Tensor | int) -> Tensor:
        """h [m, d] of the given trials, or of one trial -> h', of the dtype of h."""
        x = h.float()
        pre = (x * self.u[trials]).sum(-1) + self.b[trials]
        change = self.value[trials] - torch.where(pre > self.theta[trials], pre, 0.0)
        return (x + change[..., None] * self.w[trials]).to(h.dtype)


@dataclass(frozen=True, eq=False)
class Job:
    model: str
    """Folder in transformers format."""
    dtype: str
    prompts: list[list[int]]
    """One per round, all of the same length; the first is the warm-up."""
    new_tokens: int
    edits: Edits

    @property
    def n(self) -> int:
        return len(self.edits)

    def batch(self, prompt: list[int]) -> Tensor:
        """[n, len(prompt)] int64: the prompt of every trial of a round"""
        return torch.tensor([prompt] * self.n)

    def write(self, folder: Path) -> None:
        fields = {name: value for name, value in vars(self).items() if name != "edits"}
        (folder / "job.json").write_text(json.dumps(fields))
        save_file({name: t.contiguous() for name, t in vars(self.edits).items()}, folder / "edits.safetensors")

    @classmethod
    def read(cls, folder: Path) -> Job:
        edits = Edits(**load_file(folder / "edits.safetensors"))
        return cls(**json.loads((folder / "job.json").read_text()), edits=edits)


Way = Callable[[list[int]], list[list[int]]]
"""All trials on one prompt; returns the generated tokens of each."""


def main(ways_of: Callable[[Job], dict[str, Way]], *packages: str) -> None:
    """Time each way of one peer; write {"versions": {...}, "ways": {name: {"seconds": [...], "tokens": [...]}}}."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    job = Job.read(folder)
    ways = {name: _measure(way, job) for name, way in ways_of(job).items()}
    out.write_text(json.dumps({"versions": {name: version(name) for name in packages}, "ways": ways}))


def _measure(way: Way, job: Job) -> dict:
    seconds = []
    for prompt in job.prompts:
        start = time.perf_counter()
        found = way(prompt)
        seconds.append(time.perf_counter() - start)
        if prompt is job.prompts[0]:
            tokens = found
        lengths = {len(row) for row in found}
        if len(found) != job.n or lengths != {job.new_tokens}:
            raise RuntimeError(f"asked for {job.n} trials of {job.new_tokens} tokens, got {len(found)} of {lengths}")
    return {"seconds": seconds[1:], "tokens": tokens}
