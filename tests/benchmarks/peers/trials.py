"""A job of the peers in this project's words."""

from __future__ import annotations

import torch

from tasks.engines.bank import FEATURE, Bank
from tasks.engines.interface import Edit, Trial
from tests.benchmarks.peers.job import Job


def bank_of(job: Job) -> Bank:
    """A row per trial."""
    edits = job.edits
    return Bank(
        layer=edits.layer,
        feature=torch.arange(len(edits)),
        kind=torch.full((len(edits),), FEATURE),
        full_encode=torch.zeros(len(edits), dtype=torch.bool),
        u=edits.u,
        b=edits.b,
        theta=edits.theta,
        w=edits.w,
    )


def trials_of(job: Job, prompt: list[int]) -> list[Trial]:
    values = job.edits.value.tolist()
    return [
        Trial(i, tuple(prompt), 0, Edit(i, value, "decode"), job.new_tokens, temperature=0.0)
        for i, value in enumerate(values)
    ]
