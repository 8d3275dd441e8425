"""Shards of outlier studies on tiny models, run in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.manifest import Manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.context import Runtime
from tasks.models.spec import ModelRef
from tasks.outliers import spec
from tasks.outliers.spec import Criteria
from tasks.runner import run_shard
from tasks.text.spec import TextSource

CRITERIA = Criteria(threshold=2.1, layer_share=0.4, position_share=0.2, relative_threshold=2.5)


def prepared(store: Store, model: ModelRef, text: TextSource) -> Manifest:
    return run_shard(store, spec.PREPARE.spec(spec.PrepareParams(model=model, text=text)))


def scanned(
    store: Store, model: ModelRef, prepare: Manifest, start: int, stop: int, batch_size: int = 2, **params
) -> Manifest:
    study = _study(store, prepare)
    given = spec.ScanParams(
        model=model,
        model_fingerprint=study["model_fingerprint"],
        batch_size=batch_size,
        start=start,
        stop=stop,
        **({"criteria": CRITERIA} | params),
    )
    return run_shard(store, spec.SCAN.spec(given, {"prepared": prepare.ref}), Runtime())


def summarized(
    store: Store,
    model: ModelRef,
    text: TextSource,
    prepare: Manifest,
    scans: Sequence[Manifest],
    batch_size: int = 2,
    sites: Sequence[spec.Site] = spec.SITES,
    criteria: Criteria = CRITERIA,
    name: str = "tiny",
) -> Manifest:
    params = spec.SummaryParams(
        name=name, model=model, text=text, sites=list(sites), criteria=criteria, batch_size=batch_size
    )
    inputs = {"prepared": prepare.ref, "scans": [scan.ref for scan in scans]}
    return run_shard(store, spec.SUMMARY.spec(params, inputs))


def _study(store: Store, prepare: Manifest) -> dict:
    return Shard.open(store, prepare.ref).json("study")


def some_text(folder: Path, documents: int = 30) -> TextSource:
    """A file of documents of different lengths, each a sequence of its own."""
    text = "The player has 140 dollars, may bet 10 or stop. Choose: win it all back in round 3, or go home."
    words = text.split(" ")
    path = folder / "texts.jsonl"
    with path.open("w") as file:
        for i in range(documents):
            line = " ".join(words[(i * 7 + j * (1 + i % 3)) % len(words)] for j in range(3 + (i * 11) % 40))
            file.write(f'{{"text": "{line}"}}\n')
    return TextSource(location=str(path), pack=False, sequences=documents, length=24)
