"""Task `sae.train`: small BatchTopK dictionaries for several layers of one model, one chunk per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tasks.artifacts.shard import Shard
from tasks.context import ShardContext
from tasks.errors import BadInput
from tasks.models.describe import describe
from tasks.models.load import load
from tasks.sae import batch_topk, export, harvest
from tasks.sae.harvest import Harvest, Vectors
from tasks.sae.quality import dead_share, explained_variance, l0
from tasks.sae.reading import sequences
from tasks.sae.sae import SAE, Threshold
from tasks.sae.side_by_side import side_by_side
from tasks.sae.spec import SaeTrainParams

EVALUATION_BATCH = 4096

Row = dict[str, Any]


def run(ctx: ShardContext) -> None:
    """Tensors `sae_L08` and json `sae_L08_cfg` for each layer: the two files of a SAELens folder.

    Table `quality`: one row per layer, see `quality_row`. The text is read once for all layers; then layers train
    side by side, one per thread. A killed run that starts again on the same machine loses a block of text, or the
    layers that were in training.
    """
    p: SaeTrainParams = ctx.params
    _check_layers(p)
    with ExitStack() as stack:
        result = None
        for chunk in ctx.chunks(len(p.layers)):
            if result is None:
                result = stack.enter_context(_layers_in_training(ctx, p.layers[chunk.index :]))
            layer = p.layers[chunk.index]
            trained, row = result(layer)
            chunk.tensors(output_name(layer), export.tensors(trained.sae))
            chunk.table("quality", pa.Table.from_pylist([row], schema=QUALITY))
            chunk.commit()
            ctx.log(_summary(row))
    for row in ctx.committed.table("quality").to_pylist():
        cfg = export.config(row["d_model"], row["d_sae"], row["layer"], p.model.source, row["convention"])
        ctx.json(f"{output_name(row['layer'])}_cfg", cfg)
    ctx.count(layers=len(p.layers))
    harvest.remove(ctx.spec.hash)


def load_trained(shard: Shard, layer: int) -> SAE:
    """The dictionary of a layer from a shard of `sae.train`. Raises BadInput for a layer that it does not have."""
    name = output_name(layer)
    if name not in shard:
        layers = shard.table("quality").column("layer").to_pylist()
        raise BadInput("saes.layers", layer, f"dictionaries were trained for layers {layers}", "choose among them")
    [tensors] = shard.torch_tensors(name)
    return SAE(
        layer=layer,
        gate=Threshold(tensors.pop("threshold")),
        name=f"{shard.path}/{name}",
        convention=shard.json(f"{name}_cfg")["metadata"]["activation_unit"],
        **tensors,
    )


def export_trained(shard: Shard, layer: int, folder: Path) -> Path:
    """Write a trained dictionary as a folder that SAELens loads, and this product too (kind saelens)."""
    name = output_name(layer)
    return export.write_folder(folder, next(shard.torch_tensors(name)), shard.json(f"{name}_cfg"))


def output_name(layer: int) -> str:
    return f"sae_L{layer:02d}"


QUALITY = pa.schema(
    [
        ("layer", pa.int32()),
        ("variance_explained", pa.float64()),
        ("variance_explained_own_texts", pa.float64()),
        ("variance_explained_training", pa.float64()),
        ("l0", pa.float64()),
        ("dead_share", pa.float64()),
        ("threshold", pa.float64()),
        ("d_model", pa.int32()),
        ("d_sae", pa.int32()),
        ("k", pa.int32()),
        ("tokens", pa.int64()),
        ("held_out_tokens", pa.int64()),
        ("massive_share", pa.float64()),
        ("convention", pa.string()),
    ]
)


def quality_row(trained: batch_topk.Trained, vectors: Vectors, k: int) -> Row:
    """How good a dictionary is, by what inference computes: encode with the stored threshold, decode.

    variance_explained and l0 are of held-out text (own_texts: of the study's texts in it, null without any),
    variance_explained_training is of the last epoch's batches as trained; dead_share counts features that no token
    of the last epoch activated; tokens are those trained on, massive_share of them were left out before.
    """
    sae, x, own = trained.sae, vectors.held_out.float(), vectors.held_out_own
    encoded = [sae.encode(part.to(sae.device)) for part in x.split(EVALUATION_BATCH)]
    x_hat = torch.cat([sae.decode(f).cpu() for f in encoded])
    return {
        "layer": sae.layer,
        "variance_explained": explained_variance(x, x_hat),
        "variance_explained_own_texts": explained_variance(x[own], x_hat[own]) if own.any() else None,
        "variance_explained_training": 1 - trained.error,
        "l0": sum(l0(f) * len(f) for f in encoded) / len(x),
        "dead_share": dead_share(trained.fired),
        "threshold": float(sae.gate.theta[0]),
        "d_model": sae.d_model,
        "d_sae": sae.d_sae,
        "k": k,
        "tokens": len(vectors.training),
        "held_out_tokens": len(x),
        "massive_share": vectors.massive_share,
        "convention": sae.convention,
    }


class Progress:
    """Tokens read and trained on, of all there are to read and train on. Written by several threads."""

    def __init__(self, ctx: ShardContext) -> None:
        self._ctx = ctx
        self._done: dict[str, int] = {}
        self._messages: dict[str, str] = {}
        self.total = 0

    def set(self, part: str, tokens: int, message: str = "") -> None:
        self._done[part] = tokens
        self._messages[part] = message

    def report(self) -> None:
        message = ", ".join(text for text in self._messages.copy().values() if text)
        self._ctx.progress(sum(self._done.copy().values()), self.total, "tokens", message)


def _check_layers(p: SaeTrainParams) -> None:
    n_layers = describe(p.model).n_layers
    wrong = [layer for layer in p.layers if not 0 <= layer < n_layers]
    if wrong or not p.layers or len(set(p.layers)) < len(p.layers):
        problem = f"the model has blocks 0 to {n_layers - 1}, each to be named once"
        raise BadInput("layers", p.layers, problem, "choose among them")


def _layers_in_training(
    ctx: ShardContext, layers: Sequence[int]
) -> AbstractContextManager[Callable[[int], tuple[batch_topk.Trained, Row]]]:
    """Read the text, then start training; inside, a function waits for a layer's dictionary and quality."""
    p: SaeTrainParams = ctx.params
    progress = Progress(ctx)
    collected = _read(ctx, progress)

    def train(layer: int, check: Callable[[], None]) -> tuple[batch_topk.Trained, Row]:
        vectors = collected.vectors(layer)

        def on_step(tokens: int, unexplained: float) -> None:
            check()
            progress.set(output_name(layer), tokens, f"layer {layer}: {1 - unexplained:.2f} explained")

        trained = batch_topk.train(
            vectors.training.to(ctx.runtime.device),
            layer,
            output_name(layer),
            d_sae=p.settings.d_sae or p.settings.expansion * vectors.training.shape[1],
            k=p.settings.k,
            epochs=p.settings.epochs,
            seed=ctx.seed + layer,
            precision=getattr(torch, p.precision),
            on_step=on_step,
        )
        return trained, quality_row(trained, vectors, p.settings.k)

    workers = torch.get_num_threads() if ctx.runtime.device == "cpu" else 1
    return side_by_side(train, layers, workers, progress.report)


def _read(ctx: ShardContext, progress: Progress) -> Harvest:
    """Residual vectors of all layers, on this machine's disk."""
    p: SaeTrainParams = ctx.params
    harvest.remove_abandoned()
    model = p.model.model_copy(update={"dtype": p.precision})
    loaded = load(model, ctx.runtime.device, p.model_fingerprint)
    read = sequences(loaded.tokenizer, p, ctx.seed, describe(p.model).max_positions)
    n_read = sum(len(sequence.tokens) for sequence in read)
    n_trained = sum(len(sequence.tokens) - 1 for sequence in read if not sequence.held_out)
    progress.total = n_read + len(p.layers) * p.settings.epochs * n_trained

    def on_tokens(done: int) -> None:
        progress.set("read", done, "reading" if done < n_read else "")
        progress.report()

    collected = Harvest(ctx.spec.hash, p.layers, read)
    collected.collect(loaded, on_tokens)
    return collected


def _summary(row: Row) -> str:
    return (
        f"layer {row['layer']}: {row['variance_explained']:.3f} of the variance explained on held-out text, "
        f"{row['l0']:.1f} features per token, {row['dead_share']:.1%} of the features dead"
    )
