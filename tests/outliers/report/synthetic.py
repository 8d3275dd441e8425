"""Examined models without a model: every table of the examination, computed naively from planted activations.

Most values are normal noise below the threshold; planted dimensions exceed it in some layers at some positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.artifacts.manifest import Manifest, write_manifest
from tasks.artifacts.store import Store
from tasks.artifacts.writer import ShardWriter
from tasks.outliers.effects import effects
from tasks.outliers.spec import VARIANTS, Criteria
from tasks.outliers.tables import (
    ABLATION,
    DIMENSION_POINTS,
    DIMENSIONS,
    DIMS,
    EXPERTS,
    MASSIVE_ACTIVATIONS,
    POINTS,
    SEQUENCES,
)
from tasks.spec import InputRef, TaskSpec
from tasks.text.spec import TextSource


@dataclass(frozen=True)
class Planted:
    """One dimension with outliers: its sign and size, the share of layers (the last ones) and of positions."""

    dim: int
    size: float
    sign: int = 1
    layers: float = 1.0
    positions: float = 0.5
    mixed: float = 0.0
    """Share of its outliers with the other sign."""
    sequences: float = 1.0


@dataclass(frozen=True)
class World:
    """One model's truth."""

    name: str
    source: str
    layers: int = 8
    d: int = 96
    sequences: int = 6
    length: int = 32
    parameters: int = 135_000_000
    active: int = 135_000_000
    planted: tuple[Planted, ...] = ()
    massive: tuple[tuple[int, float], ...] = ()
    """(dimension, magnitude) in the residual stream, at the first position from the third layer on."""
    wide: float = 0.0
    """Share of dimensions with a gain that lifts them over the threshold now and then."""
    experts: int = 0
    per_token: int = 2
    shared: bool = False
    ablation: float | None = None
    """What zeroing adds to the loss per token, in nats; None: not run."""
    nan: int = 0
    asked: int | None = None
    warnings: tuple[str, ...] = ()
    bos: bool = True
    quantization: str | None = None
    criteria: Criteria = field(default_factory=Criteria)
    seed: int = 0


def activations(world: World, site: str, layer: int, rng: np.random.Generator) -> np.ndarray:
    """One point: [sequence, position, dimension]."""
    shape = (world.sequences, world.length, world.d)
    x = np.clip(rng.normal(0, 1.1, shape), -5, 5)
    if world.wide:
        x[..., : int(world.wide * world.d)] *= 3.2
    for one in world.planted:
        if layer < (1 - one.layers) * world.layers:
            continue
        where = rng.random(shape[:2]) < one.positions
        where &= (np.arange(world.sequences) < one.sequences * world.sequences)[:, None]
        sign = np.where(rng.random(shape[:2]) < one.mixed, -one.sign, one.sign)
        size = one.size * np.exp(rng.normal(0, 0.12, shape[:2])) * (0.6 + 0.4 * layer / world.layers)
        x[..., one.dim] = np.where(where, sign * np.maximum(size, 6.5), x[..., one.dim])
    if site == "residual" and layer > 1:
        for dim, size in world.massive:
            x[:, 0, dim] = -size * (1 + 0.02 * rng.normal(size=world.sequences))
    return x.astype(np.float32)


def points_of(world: World, site: str) -> list[tuple[str, int, str]]:
    """(name, layer, kind) in order of depth."""
    if site == "residual":
        return [(f"layer_{i}_resid_post", i, "resid") for i in range(world.layers)]
    return [(f"layer_{i}_ln_{kind}", i, kind) for i in range(world.layers) for kind in ("attn", "mlp")]


class SiteTables:
    """All tables of one site. Hits are [criterion, point, sequence, position, dimension]."""

    def __init__(self, world: World, site: str) -> None:
        self.world, self.site, self.points = world, site, points_of(world, site)
        rng = np.random.default_rng([world.seed, site == "residual"])
        self.x = np.stack([activations(world, site, layer, rng) for _, layer, _ in self.points])
        size, c = np.abs(self.x), world.criteria
        self.over_rms = size / np.sqrt((self.x**2).mean(-1, keepdims=True))
        self.over_median = size / np.median(size, axis=-1, keepdims=True)
        massive = (size > c.massive_magnitude) & (self.over_median >= c.massive_ratio)
        self.hits = np.stack([size >= c.threshold, self.over_rms >= c.relative_threshold, massive])

    def shares(self, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of hits [point, sequence, position, dimension]: share of points, of positions, systematic."""
        c = self.world.criteria
        layers = hits.any((1, 2)).mean(0)
        positions = hits.any((0, 1)).mean(0)
        return layers, positions, (layers >= c.layer_share) & (positions >= c.position_share)

    def per_sequence(self, variant: str) -> np.ndarray:
        """[sequence, dimension]: systematic in it."""
        hits = self.hits[0][:, :, variant != "all" :]
        return np.stack([self.shares(hits[:, [b]])[2] for b in range(self.world.sequences)])

    def dimensions(self) -> pa.Table:
        return DIMENSIONS.from_rows([r for v in VARIANTS for r in self._dimensions(v)])

    def _dimensions(self, variant: str) -> list[dict]:
        start = int(variant != "all")
        hits, x = self.hits[:, :, :, start:], self.x[:, :, start:]
        layers, positions, systematic = self.shares(hits[0])
        relative = self.shares(hits[1])
        each = self.per_sequence(variant).sum(0)
        rows = []
        for dim in np.flatnonzero(hits.any((0, 1, 2, 3))):
            mine = hits[0, ..., dim]
            values = np.abs(x[..., dim])
            per_point = mine.mean((1, 2))
            any_hit = hits[..., dim].any(0)
            rows.append(
                {
                    "site": self.site,
                    "positions": variant,
                    "dim": int(dim),
                    "systematic": bool(systematic[dim]),
                    "layer_share": layers[dim],
                    "position_share": positions[dim],
                    "mean_point_share": per_point[per_point > 0].mean() if mine.any() else 0.0,
                    "max_point_share": per_point.max(),
                    "max_magnitude": values.max(),
                    "occurrences": int(mine.sum()),
                    "positive": int((mine & (x[..., dim] > 0)).sum()),
                    "negative": int((mine & (x[..., dim] < 0)).sum()),
                    "relative_systematic": bool(relative[2][dim]),
                    "relative_layer_share": relative[0][dim],
                    "relative_position_share": relative[1][dim],
                    "relative_occurrences": int(hits[1, ..., dim].sum()),
                    "massive_occurrences": int(hits[2, ..., dim].sum()),
                    "max_over_rms": (self.over_rms[:, :, start:, dim] * any_hit).max(),
                    "max_over_median": (self.over_median[:, :, start:, dim] * any_hit).max(),
                    "sequences": int(each[dim]),
                    "recurrence": each[dim] / self.world.sequences,
                    "examples": self._examples(mine, x[..., dim], start),
                    "first_values": x[..., dim][mine][:5].tolist(),
                }
            )
        return rows

    @staticmethod
    def _examples(hits: np.ndarray, x: np.ndarray, start: int) -> list[dict]:
        """The largest, one of each sequence and point."""
        size = np.where(hits, np.abs(x), 0)
        found = []
        for point, sequence in np.argwhere(size.max(-1) > 0):
            position = int(size[point, sequence].argmax())
            place = {"point": int(point), "sequence": int(sequence), "position": position + start}
            found.append({"value": float(x[point, sequence, position]), **place})
        return sorted(found, key=lambda e: -abs(e["value"]))[:5]

    def kept(self) -> np.ndarray:
        """Dimensions that are systematic over all sequences or in one, under either variant."""
        every = [self.shares(self.hits[0][:, :, v != "all" :])[2] for v in VARIANTS]
        return np.flatnonzero(np.any([*every, *(self.per_sequence(v).any(0) for v in VARIANTS)], axis=0))

    def dimension_points(self) -> pa.Table:
        size = np.abs(self.x)
        rows = [
            {
                "site": self.site,
                "dim": int(dim),
                "point": point,
                "occurrences": int(self.hits[0, point, :, :, dim].sum()),
                "occurrences_without_first": int(self.hits[0, point, :, 1:, dim].sum()),
                "max_magnitude": size[point, :, :, dim].max(),
                "max_magnitude_without_first": size[point, :, 1:, dim].max(),
            }
            for dim in self.kept()
            for point in range(len(self.points))
        ]
        return DIMENSION_POINTS.from_rows(rows)

    def points_table(self) -> pa.Table:
        size = np.abs(self.x)
        rows = [
            {
                "site": self.site,
                "point": i,
                "name": name,
                "layer": layer,
                "kind": kind,
                "values": self.x[i].size,
                "outliers": int(self.hits[0, i].sum()),
                "outliers_without_first": int(self.hits[0, i, :, 1:].sum()),
                "max_magnitude": size[i].max(),
                "max_magnitude_without_first": size[i, :, 1:].max(),
                "nan": self.world.nan if i == len(self.points) - 1 else 0,
                "inf": 0,
            }
            for i, (name, layer, kind) in enumerate(self.points)
        ]
        return POINTS.from_rows(rows)

    def massive(self) -> pa.Table:
        rows = [
            {
                "site": self.site,
                "point": int(point),
                "name": self.points[point][0],
                "layer": self.points[point][1],
                "dim": int(dim),
                "occurrences": int(self.hits[2, point, :, :, dim].sum()),
                "at_first_position": int(self.hits[2, point, :, 0, dim].sum()),
                "max_magnitude": np.abs(self.x[point, :, :, dim])[self.hits[2, point, :, :, dim]].max(),
            }
            for point, dim in np.argwhere(self.hits[2].any((1, 2)))
        ]
        return MASSIVE_ACTIVATIONS.from_rows(rows)

    def nearest_massive(self) -> dict[str, Any] | None:
        size, c = np.abs(self.x), self.world.criteria
        share = np.minimum(size / c.massive_magnitude, self.over_median / c.massive_ratio)
        if self.hits[2].any() or size.max() < c.threshold:
            return None
        point, sequence, position, dim = np.unravel_index(share.argmax(), share.shape)
        name, layer, _ = self.points[point]
        return {
            "point": name,
            "layer": layer,
            "dim": int(dim),
            "sequence": int(sequence),
            "position": int(position),
            "value": float(self.x[point, sequence, position, dim]),
            "median": float(np.median(size[point, sequence, position])),
            "ratio": float(self.over_median[point, sequence, position, dim]),
        }

    def sequences(self) -> pa.Table:
        counts = {v: self.per_sequence(v).sum(1) for v in VARIANTS}
        rows = [
            {
                "site": self.site,
                "sequence": b,
                "tokens": self.world.length,
                "systematic_all": int(counts["all"][b]),
                "systematic_without_first": int(counts["without_first"][b]),
                "nan": 0,
                "inf": 0,
            }
            for b in range(self.world.sequences)
        ]
        return SEQUENCES.from_rows(rows)

    def facts(self, variant: str) -> dict[str, Any]:
        """Numbers of the json `summary`."""
        start = int(variant != "all")
        hits = self.hits[:, :, :, start:]
        systematic = self.shares(hits[0])[2]
        each = self.per_sequence(variant)
        pairs = [(b, h) for b, h in np.argwhere(each)]
        layers = [hits[0][:, b, :, h].any(1).mean() for b, h in pairs]
        positions = [hits[0][:, b, :, h].any(0).mean() for b, h in pairs]
        signs = [np.sign(self.x[:, :, start:, h][hits[0][..., h]]) for h in np.flatnonzero(systematic)]
        return {
            "systematic": int(systematic.sum()),
            "pairs": len(pairs),
            "unique": int(each.any(0).sum()),
            "in_all": int(each.all(0).sum()),
            "mean_per_sequence": len(pairs) / self.world.sequences,
            "relative_systematic": int(self.shares(hits[1])[2].sum()),
            "occurrences": int(hits[0].sum()),
            "mean_layer_share": float(np.mean(layers)) if layers else None,
            "median_layer_share": float(np.median(layers)) if layers else None,
            "mean_position_share": float(np.mean(positions)) if positions else None,
            "median_position_share": float(np.median(positions)) if positions else None,
            "one_sided": float(np.mean([max((s > 0).mean(), (s < 0).mean()) >= 0.9 for s in signs])) if signs else None,
        }


@dataclass
class Stage:
    """Outputs of one shard."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    json: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Examination:
    """The shards of one model; `ablation` if it ran."""

    world: World
    prepared: Stage
    summary: Stage
    ablation: Stage | None

    def rows(self, table: str) -> list[dict]:
        return self.summary.tables[table].to_pylist()


def examine(world: World) -> Examination:
    """Every shard of the model of `world`."""
    sites = [SiteTables(world, site) for site in ("norms", "residual")]
    headline = "all" if world.criteria.first_position else "without_first"
    about = {
        "model": {"source": world.source, "revision": None, "adapter": None, "dtype": "bfloat16"},
        "model_info": {
            "n_layers": world.layers,
            "d_model": world.d,
            "vocab_size": 49152,
            "max_positions": 2048,
            "model_type": "mixtral" if world.experts else "llama",
            "architecture": "MixtralForCausalLM" if world.experts else "LlamaForCausalLM",
        },
        "parameters": world.parameters,
        "active_parameters": world.active,
        "quantization": world.quantization,
        "bos": world.bos,
        "longest": world.length,
        "warnings": list(world.warnings),
        "sequences": world.sequences,
        "tokens": world.sequences * world.length,
    }
    study = about | {"model_fingerprint": f"{world.seed:02d}c0ffee5be77d4c2190aa5be77d4c21", "documents": 3}
    summary = about | {
        "name": world.name,
        "text": TextSource(sequences=world.asked or world.sequences, length=world.length).model_dump(mode="json"),
        "criteria": world.criteria.model_dump(mode="json"),
        "batch_size": 8,
        "headline": headline,
        "points": {site.site: [name for name, _, _ in site.points] for site in sites},
        "experts": {
            "layers": world.layers - 1,
            "routed": world.experts,
            "per_token": world.per_token,
            "shared": world.shared,
        }
        if world.experts
        else None,
        "nearest_massive": {site.site: site.nearest_massive() for site in sites},
        "nan": 2 * world.nan,
        "inf": 0,
        "sites": {site.site: {v: site.facts(v) for v in VARIANTS} for site in sites},
    }
    tables = {
        name: pa.concat_tables(getattr(site, method)() for site in sites)
        for name, method in (
            ("dimensions", "dimensions"),
            ("dimension_points", "dimension_points"),
            ("points", "points_table"),
            ("massive", "massive"),
            ("sequences", "sequences"),
        )
    }
    if world.experts:
        tables["experts"] = experts(world)
    found = [d for d in tables["dimensions"].to_pylist() if (d["site"], d["positions"]) == ("norms", headline)]
    found = sorted((d for d in found if d["occurrences"]), key=lambda d: -d["max_magnitude"])
    systematic = [d["dim"] for d in found if d["systematic"]]
    return Examination(
        world,
        Stage(json={"study": study}, counts={"sequences": world.sequences}),
        Stage(tables=tables, json={"summary": summary}, counts={"sequences": world.sequences}),
        None if world.ablation is None else ablation(world, systematic, [d["dim"] for d in found]),
    )


def experts(world: World) -> pa.Table:
    """Table `experts` of all layers but the first, which is dense."""
    rng = np.random.default_rng([world.seed, 5])
    tokens, rows = world.sequences * world.length, []
    for layer in range(1, world.layers):
        p = rng.dirichlet(np.full(world.experts, 2.5))
        sent = np.minimum(np.round(p * tokens * world.per_token), tokens).astype(int)
        sent[0] = 0 if layer == 2 else sent[0]
        every = [(e, "routed", int(n)) for e, n in enumerate(sent)] + [(-1, "shared", tokens)] * world.shared
        for expert, kind, n in every:
            into, out = int(n * rng.beta(4, 3)), int(n * rng.beta(2, 9) * (2.5 if kind == "shared" else 1))
            rows.append(
                {
                    "layer": layer,
                    "expert": expert,
                    "kind": kind,
                    "tokens": n,
                    "share": n / tokens,
                    "expected_share": world.per_token / world.experts if kind == "routed" else 1.0,
                    "mean_weight": 0.5 if kind == "routed" and n else None,
                    "tokens_with_outlier_in": into,
                    "outliers_in": 2 * into,
                    "tokens_with_outlier_out": min(out, n),
                    "outliers_out": 3 * out,
                    "outlier_rate_in": into / n if n else None,
                    "outlier_rate_out": min(out, n) / n if n else None,
                }
            )
    return EXPERTS.from_rows(rows)


def ablation(world: World, systematic: list[int], found: list[int], largest: int = 7) -> Stage:
    """The functional check: zeroing costs `world.ablation` nats, random dimensions next to nothing.

    `found`: dimensions with outliers; the largest of them are zeroed where none is systematic.
    """
    rng = np.random.default_rng([world.seed, 9])
    base = rng.normal(3.1, 0.15, world.sequences)
    sizes = {"none": 0, "systematic": len(systematic), "random_systematic": min(len(systematic), world.d // 2)}
    if not systematic:
        n = min(largest, len(found))
        sizes = {"none": 0} | ({"largest": n, "random_largest": n} if n else {})
    elif len(systematic) > largest:
        sizes |= {"largest": largest, "random_largest": largest}
    costs = {"none": 0.0, "systematic": world.ablation, "largest": 0.8 * world.ablation}
    rows, dims = [], []
    for condition, n in sizes.items():
        for draw in range(5 if condition.startswith("random") else 1):
            chosen = (
                (systematic or found)[:n]
                if not condition.startswith("random")
                else rng.choice(world.d, n, False).tolist()
            )
            dims.append({"condition": condition, "draw": draw, "dims": sorted(chosen)})
            for sequence in range(world.sequences):
                cost = costs.get(condition, 0.004) * float(np.exp(rng.normal(0, 0.08)))
                tokens = world.length - 1
                rows.append(
                    {
                        "condition": condition,
                        "draw": draw,
                        "n_dims": n,
                        "sequence": sequence,
                        "tokens": tokens,
                        "nll": tokens * (base[sequence] + cost),
                        "top1_probability": tokens * 0.42 * float(np.exp(-0.25 * cost)),
                        "correct": tokens // 3,
                    }
                )
    table = ABLATION.from_rows(rows)
    made = {"ablation": table, "dims": DIMS.from_rows(dims), "effects": effects(table, world.seed)}
    return Stage(tables=made, counts={"sequences": world.sequences})


def write(store: Store, examined: list[Examination], host: str = "worker-1") -> dict[str, list[InputRef]]:
    """Finished shards of all models in `store`, as the report's inputs; `host` and the times vary with the run."""
    inputs: dict[str, list[InputRef]] = {"prepared": [], "summary": [], "ablation": []}
    for one in examined:
        key = one.world.name
        inputs["prepared"].append(_write(store, "prepare", key, one.prepared, host))
        scans = [_write(store, f"scan-{i}", key, Stage(counts={"sequences": 1}), host) for i in range(2)]
        inputs["summary"].append(_write(store, "summary", key, one.summary, host, {"scans": scans}))
        if one.ablation:
            inputs["ablation"].append(_write(store, "ablation", key, one.ablation, host))
    return {name: refs for name, refs in inputs.items() if refs}


def _write(
    store: Store, name: str, key: str, stage: Stage, host: str, inputs: dict[str, list[InputRef]] | None = None
) -> InputRef:
    spec = TaskSpec(task=f"synthetic.{name}", version=1, params={"model": key}, inputs=inputs or {})
    writer = ShardWriter(store.at(spec.path))
    for output, table in stage.tables.items():
        writer.table(output, table)
    for output, value in stage.json.items():
        writer.json(output, value)
    writer.count(**stage.counts)
    run = {
        "timings": {"total_seconds": 42.0, "writing_seconds": 0.1},
        "reused_chunks": 0,
        "host": host,
        "device": "cpu",
        "device_name": "x86_64",
        "versions": {"python": "3.11.2", "torch": "2.13.0+cpu"},
        "peak_memory": {"process_bytes": 2**30},
    }
    manifest = Manifest.of(spec, writer.outputs, writer.counts, run)
    write_manifest(store, manifest)
    return manifest.ref
