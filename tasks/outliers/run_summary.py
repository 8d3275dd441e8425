"""Task `outliers.summary`: the states of all shards merged, classified, and written as tables and as one JSON file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts.shard import Shard
from tasks.context import ShardContext
from tasks.outliers import results
from tasks.outliers.merge import SiteMerger
from tasks.outliers.pooled import PointName, PooledSite
from tasks.outliers.results_layout import RESULTS
from tasks.outliers.routing import experts_table
from tasks.outliers.spec import VARIANTS, Site, SummaryParams
from tasks.outliers.state import SiteState, part_of
from tasks.outliers.tables import (
    DIMENSION_POINTS,
    DIMENSIONS,
    EXPERTS,
    MASSIVE_ACTIVATIONS,
    POINT_NAMES,
    POINTS,
    SEQUENCES,
    SYSTEMATIC,
)


def run(ctx: ShardContext) -> None:
    """Tables `dimensions`, `dimension_points`, `points`, `massive`, `experts` (of a mixture of experts) over all
    sequences; `systematic` and `sequences`, of single ones; json `summary`; and the file of results."""
    p: SummaryParams = ctx.params
    scans = ctx.inputs("scans")
    states, routing = _merged(ctx, scans, p.sites)
    sites = [PooledSite(site, states[site], _points(scans[0], site), p.criteria) for site in p.sites]
    tables = {
        DIMENSIONS.name: pa.concat_tables(site.dimensions() for site in sites),
        DIMENSION_POINTS.name: pa.concat_tables(site.dimension_points() for site in sites),
        POINTS.name: pa.concat_tables(site.points_table() for site in sites),
        MASSIVE_ACTIVATIONS.name: pa.concat_tables(site.massive() for site in sites),
        SYSTEMATIC.name: pa.concat_tables(SYSTEMATIC.read(scan) for scan in scans),
        SEQUENCES.name: pa.concat_tables(SEQUENCES.read(scan) for scan in scans),
    }
    experts = None
    if len(routing["layers"]):
        per_token = int(routing["per_token"][0])
        tables[EXPERTS.name] = experts_table(
            routing["layers"], routing["n_experts"], per_token, routing["counts"], entering="norms" in p.sites
        )
        experts = {
            "layers": len(routing["layers"]),
            "routed": int(routing["n_experts"].max()),
            "per_token": per_token,
            "shared": bool(routing["counts"][:, -1, 0].any()),
        }
    summary = _summary(ctx, sites, tables, experts)
    for name, table in tables.items():
        ctx.table(name, table)
    ctx.json("summary", summary)
    ctx.file(RESULTS, results.to_json(results.document(summary, tables)))
    headline = summary["sites"][sites[0].site][summary["headline"]]
    ctx.count(systematic=headline["systematic"], pairs=headline["pairs"], sequences=summary["sequences"])


def _merged(
    ctx: ShardContext, scans: Sequence[Shard], sites: Sequence[Site]
) -> tuple[dict[Site, SiteState], dict[str, np.ndarray]]:
    """The state of each site, and the routing, over all chunks of all shards; one chunk is in memory at a time."""
    mergers = {site: SiteMerger() for site in sites}
    routing: dict[str, np.ndarray] = {}
    for number, arrays in enumerate(_chunks(scans), start=1):
        for site, merger in mergers.items():
            merger.add(SiteState.from_arrays(part_of(arrays, site)))
        of_chunk = part_of(arrays, "routing")
        routing = of_chunk | ({"counts": routing["counts"] + of_chunk["counts"]} if routing else {})
        ctx.progress(number, sum(len(scan.manifest.outputs["state"].objects) for scan in scans), "chunks")
    return {site: merger.state() for site, merger in mergers.items()}, routing


def _chunks(scans: Sequence[Shard]) -> Iterator[dict[str, np.ndarray]]:
    for scan in scans:
        yield from scan.tensors("state")


def _points(scan: Shard, site: Site) -> list[PointName]:
    rows = next(scan.tables(POINT_NAMES.name)).to_pylist()
    return [PointName(row["name"], row["layer"], row["kind"]) for row in rows if row["site"] == site]


def _summary(
    ctx: ShardContext, sites: Sequence[PooledSite], tables: dict[str, pa.Table], experts: dict[str, Any] | None
) -> dict[str, Any]:
    p: SummaryParams = ctx.params
    prepared = ctx.input("prepared")
    study = prepared.json("study")
    known = ("model", "model_info", "parameters", "active_parameters", "quantization", "bos", "longest", "warnings")
    pairs = tables[SYSTEMATIC.name]
    broken = {name: int(sum(getattr(site.state, name).sum() for site in sites)) for name in ("nan", "inf")}
    return {
        "name": p.name,
        **{name: study[name] for name in known},
        "sequences": sites[0].state.sequences,
        "tokens": sites[0].parts["all"].tokens,
        "text": p.text.model_dump(mode="json"),
        "criteria": p.criteria.model_dump(mode="json"),
        "batch_size": p.batch_size,
        "headline": p.criteria.headline,
        "points": {site.site: [point.name for point in site.points] for site in sites},
        "experts": experts,
        "nearest_massive": {site.site: site.nearest_massive() for site in sites},
        **broken,
        "sites": {
            site.site: {
                variant: site.facts(variant) | _of_pairs(pairs, site.site, variant, p.criteria.headline)
                for variant in VARIANTS
            }
            for site in sites
        },
    }


def _of_pairs(table: pa.Table, site: Site, variant: str, headline: str) -> dict[str, float | None]:
    """Means and medians over the (sequence, dimension) pairs of the site and variant that are kept one by one."""
    mine = table.filter(pc.and_(pc.equal(table["site"], site), table["systematic"]))
    found: dict[str, float | None] = {}
    for share in ("layer_share", "position_share"):
        values = mine[share].to_numpy() if variant == headline else np.empty(0)
        found[f"mean_{share}"] = float(values.mean()) if len(values) else None
        found[f"median_{share}"] = float(np.median(values)) if len(values) else None
    return found
