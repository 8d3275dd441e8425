"""A short training on the embedded model: real residual streams, and the right layer's."""

from __future__ import annotations

import pytest

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.models.fingerprint import fingerprint
from tasks.models.load import LoadedModel, load
from tasks.models.spec import ModelRef
from tasks.runner import run_shard
from tasks.sae.harvest import ordinary, residuals
from tasks.sae.quality import explained_variance
from tasks.sae.run import load_trained
from tasks.sae.spec import KINDS, SaeTrainParams, TrainSettings
from tasks.text.prose import library_fingerprint, library_prose

LAYER = 2
"""Its block changes the stream by half of its variance; most blocks of this model by a tenth only."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(ModelRef())


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    model = ModelRef()
    params = SaeTrainParams(
        model=model,
        model_fingerprint=fingerprint(model),
        layers=[LAYER],
        settings=TrainSettings(d_sae=1152, k=32, tokens=24_000, epochs=3),
        corpus_fingerprint=library_fingerprint(),
    )
    store = Store(tmp_path_factory.mktemp("store"))
    [kind] = KINDS
    spec = kind.spec(params)
    run_shard(store, spec)
    return Shard(store, spec.path)


def test_most_of_the_variance_of_unread_text_is_explained(shard: Shard) -> None:
    [row] = shard.table("quality").to_pylist()
    assert row["variance_explained"] > 0.85
    assert row["l0"] == pytest.approx(32, rel=0.15)
    assert row["dead_share"] < 0.2
    assert row["massive_share"] < 0.01


def test_the_layer_is_the_right_one(shard: Shard, loaded: LoadedModel) -> None:
    """The dictionary of layer L reconstructs the output of block L far better than its input or the next output."""
    sae = load_trained(shard, LAYER)
    unread = loaded.tokenizer("\n\n".join(library_prose()[-10:]))["input_ids"]
    sequences = [unread[at : at + 256] for at in range(0, 8 * 256, 256)]
    streams = residuals(loaded, sequences, [LAYER - 1, LAYER, LAYER + 1])
    unexplained = {}
    for layer, x in streams.items():
        x = x[ordinary(x)].float()
        unexplained[layer] = 1 - explained_variance(x, sae.reconstruct(x))
    assert unexplained[LAYER] < 0.1
    assert unexplained[LAYER - 1] > 2.5 * unexplained[LAYER]
    assert unexplained[LAYER + 1] > 1.4 * unexplained[LAYER]
