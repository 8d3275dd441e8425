"""Residual vectors of text: the right ones, in order, without massive activations, kept for a run that starts again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from tasks.models.load import LoadedModel, load
from tasks.models.spec import ModelRef
from tasks.sae import harvest
from tasks.sae.harvest import Harvest, ordinary, remove, remove_abandoned, residuals
from tasks.sae.reading import Sequence


@pytest.fixture(scope="module")
def loaded(tiny_model: ModelRef) -> LoadedModel:
    return load(tiny_model)


def read(lengths: list[int]) -> list[Sequence]:
    """Random sequences; every third is held out, every second is the study's own."""
    rng = torch.Generator().manual_seed(0)
    tokens = [tuple(torch.randint(6, 300, (n,), generator=rng).tolist()) for n in lengths]
    return [Sequence(t, own=i % 2 == 0, held_out=i % 3 == 0) for i, t in enumerate(tokens)]


def naive(loaded: LoadedModel, sequence: Sequence, layer: int) -> torch.Tensor:
    """One sequence in one pass: the stream after block `layer`, without the first position."""
    out = loaded.model(torch.tensor([sequence.tokens]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0, 1:]


@torch.no_grad()
def test_vectors_are_the_stream_after_each_block(loaded: LoadedModel) -> None:
    chosen = read([7, 30, 2, 19])
    found = residuals(loaded, [s.tokens for s in chosen], layers=[0, 2])
    for layer in (0, 2):
        expected = torch.cat([naive(loaded, s, layer) for s in chosen])
        torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=1e-5)


def test_blocks_above_the_deepest_layer_do_not_run(loaded: LoadedModel) -> None:
    ran: list[int] = []
    hooks = [b.register_forward_hook(lambda *call, i=i: ran.append(i)) for i, b in enumerate(loaded.layout.blocks)]
    residuals(loaded, [(7, 8, 9)], layers=[1])
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


@torch.no_grad()
def test_vectors_of_a_layer_are_split_as_the_sequences_are(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest, "MASSIVE", 1000)
    chosen = read([5 + n % 7 for n in range(150)])
    collected = Harvest("test", [0, 2], chosen)
    seen: list[int] = []
    collected.collect(loaded, seen.append)
    assert seen[-1] == sum(len(s.tokens) for s in chosen)
    assert len(seen) == 3
    vectors = collected.vectors(2)
    training = torch.cat([naive(loaded, s, 2) for s in chosen if not s.held_out])
    held_out = torch.cat([naive(loaded, s, 2) for s in chosen if s.held_out])
    torch.testing.assert_close(vectors.training, training, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors.held_out, held_out, atol=1e-5, rtol=1e-5)
    own = [s.own for s in chosen if s.held_out for _ in s.tokens[1:]]
    assert vectors.held_out_own.tolist() == own


def test_a_run_that_starts_again_reads_on(loaded: LoadedModel, cache: Path) -> None:
    chosen = read([6] * 150)
    seen: list[int] = []

    def die_after_two(done: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Harvest("test", [1], chosen).collect(loaded, die_after_two)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("vectors.safetensors")}
    assert len(written) == 2
    again = Harvest("test", [1], chosen)
    again.collect(loaded, seen.append)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(cache.rglob("vectors.safetensors"))) == 3
    once = Harvest("other", [1], chosen)
    once.collect(loaded, seen.append)
    assert torch.equal(again.vectors(1).training, once.vectors(1).training)

    remove("test")
    assert not (cache / "harvests/test").exists()
    assert (cache / "harvests/other").exists()


def test_massive_activations_are_left_out() -> None:
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    x[17] *= 100
    assert ordinary(x).nonzero().squeeze(1).tolist() == [i for i in range(100) if i != 17]


def test_what_killed_runs_left_is_removed_after_a_week(cache: Path) -> None:
    for name, age_days in (("old", 8), ("recent", 6)):
        folder = cache / "harvests" / name
        folder.mkdir(parents=True)
        then = time.time() - age_days * 86400
        os.utime(folder, (then, then))
    remove_abandoned()
    assert [path.name for path in (cache / "harvests").iterdir()] == ["recent"]
