"""Tables over all sequences, from the merged state of a site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.outliers.examples import FIELDS, NONE, Examples
from tasks.outliers.merge import over_positions
from tasks.outliers.single_sequences import ragged
from tasks.outliers.spec import ABSOLUTE, MASSIVE, RELATIVE, VARIANTS, Criteria, Site
from tasks.outliers.state import PartState, SiteState
from tasks.outliers.tables import DIMENSION_POINTS, DIMENSIONS, EXAMPLE, MASSIVE_ACTIVATIONS, POINTS


@dataclass(frozen=True)
class PointName:
    """What a point is called."""

    name: str
    layer: int
    kind: str


class PooledSite:
    """All sequences at one site, taken as one."""

    def __init__(self, site: Site, state: SiteState, points: Sequence[PointName], criteria: Criteria) -> None:
        self.site, self.state, self.points, self.criteria = site, state, points, criteria
        self.parts: dict[str, PartState] = {name: over_positions(state, name) for name in VARIANTS}

    def dimensions(self) -> pa.Table:
        """Every dimension with any hit, under both variants."""
        return pa.concat_tables(self._dimensions(variant) for variant in VARIANTS)

    def _dimensions(self, variant: str) -> pa.Table:
        part = self.parts[variant]
        m = len(part.dims)
        hits = part.count[:, ABSOLUTE]
        affected = (hits > 0).sum(1)
        point_share = hits / max(part.tokens, 1)
        occurrences = hits.sum(1)
        sequences = self.state.recurrence[VARIANTS.index(variant), part.dims]
        layer_share, position_share, systematic = self._shares(part, variant, ABSOLUTE)
        relative_layers, relative_positions, relative_systematic = self._shares(part, variant, RELATIVE)
        columns = {
            "site": pa.array([self.site] * m, pa.string()),
            "positions": pa.array([variant] * m, pa.string()),
            "dim": part.dims,
            "systematic": systematic,
            "layer_share": layer_share,
            "position_share": position_share,
            "mean_point_share": point_share.sum(1) / np.maximum(affected, 1),
            "max_point_share": point_share.max(1, initial=0),
            "max_magnitude": part.peak[part.dims].max(1, initial=0),
            "occurrences": occurrences,
            "positive": occurrences - part.negative,
            "negative": part.negative,
            "relative_systematic": relative_systematic,
            "relative_layer_share": relative_layers,
            "relative_position_share": relative_positions,
            "relative_occurrences": part.count[:, RELATIVE].sum(1),
            "massive_occurrences": part.count[:, MASSIVE].sum(1),
            "max_over_rms": part.over_rms,
            "max_over_median": part.over_median,
            "sequences": sequences,
            "recurrence": sequences / max(self.state.sequences, 1),
            "examples": _examples(part.largest),
            "first_values": ragged(part.first.value, part.first.point != NONE),
        }
        return DIMENSIONS.from_columns(columns)

    def _shares(self, part: PartState, variant: str, criterion: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each dimension: share of points, share of positions, and whether both reach the criteria."""
        positions = max(part.width - (variant == "without_first"), 1)
        layers = (part.count[:, criterion] > 0).sum(1) / len(self.points)
        union = part.positions_hit()[:, criterion] / positions
        reached = (layers >= self.criteria.layer_share) & (union >= self.criteria.position_share)
        return layers, union, reached

    def systematic(self, variant: str, criterion: int = ABSOLUTE) -> np.ndarray:
        """Dimensions that are systematic over all sequences, ascending."""
        part = self.parts[variant]
        return part.dims[self._shares(part, variant, criterion)[2]]

    def dimension_points(self) -> pa.Table:
        """Where the dimensions worth a look have their outliers: those that are systematic by either threshold, over
        all sequences or in one, and the largest."""
        in_one = np.flatnonzero(self.state.recurrence.any(axis=0))
        pooled = [self.systematic(variant, by) for variant in VARIANTS for by in (ABSOLUTE, RELATIVE)]
        part = self.parts["all"]
        largest = part.dims[np.argsort(-part.peak[part.dims].max(1, initial=0), kind="stable")[:LARGEST]]
        dims = np.unique(np.concatenate([in_one, *pooled, largest])).astype(np.int32)
        everywhere, rest = (self.parts[variant].of(dims) for variant in VARIANTS)
        n = len(self.points)
        columns = {
            "site": pa.array([self.site] * (len(dims) * n), pa.string()),
            "dim": np.repeat(dims, n),
            "point": np.tile(np.arange(n), len(dims)),
            "occurrences": everywhere.count[:, ABSOLUTE].reshape(-1),
            "occurrences_without_first": rest.count[:, ABSOLUTE].reshape(-1),
            "max_magnitude": everywhere.peak[dims].reshape(-1),
            "max_magnitude_without_first": rest.peak[dims].reshape(-1),
        }
        return DIMENSION_POINTS.from_columns(columns)

    def points_table(self) -> pa.Table:
        """One row for each point, over all dimensions."""
        everywhere, rest = (self.parts[variant] for variant in VARIANTS)
        n = len(self.points)
        columns = {
            "site": pa.array([self.site] * n, pa.string()),
            "point": np.arange(n),
            "name": pa.array([point.name for point in self.points]),
            "layer": np.array([point.layer for point in self.points]),
            "kind": pa.array([point.kind for point in self.points]),
            "values": np.full(n, everywhere.tokens * everywhere.d),
            "outliers": everywhere.count[:, ABSOLUTE].sum(0),
            "outliers_without_first": rest.count[:, ABSOLUTE].sum(0),
            "max_magnitude": everywhere.peak.max(0, initial=0),
            "max_magnitude_without_first": rest.peak.max(0, initial=0),
            "nan": self.state.nan,
            "inf": self.state.inf,
        }
        return POINTS.from_columns(columns)

    def massive(self) -> pa.Table:
        """Massive activations (Sun et al. 2024, arXiv 2402.17762, section 2), by point and dimension."""
        part = self.parts["all"]
        dim, point = np.nonzero(part.count[:, MASSIVE])
        first = self.state.first.of(part.dims)
        columns = {
            "site": pa.array([self.site] * len(dim), pa.string()),
            "point": point,
            "name": pa.array([self.points[p].name for p in point], pa.string()),
            "layer": np.array([self.points[p].layer for p in point], np.int32),
            "dim": part.dims[dim],
            "occurrences": part.count[dim, MASSIVE, point],
            "at_first_position": first.count[dim, MASSIVE, point],
            "max_magnitude": part.massive_peak[dim, point],
        }
        return MASSIVE_ACTIVATIONS.from_columns(columns)

    def nearest_massive(self) -> dict[str, object] | None:
        """What comes nearest to a massive activation, where none is one; None too where no value is an outlier.

        The ratio to the token's median magnitude is None where that is 0.
        """
        part = self.parts["all"]
        point = int(part.nearest.share.argmax())
        best = part.nearest.map(lambda values: values[point].item())
        if part.count[:, MASSIVE].any() or not best.share:
            return None
        return {
            "point": self.points[point].name,
            "layer": self.points[point].layer,
            "dim": best.dim,
            "sequence": best.sequence,
            "position": best.position,
            "value": best.value,
            "median": best.median,
            "ratio": abs(best.value) / best.median if best.median else None,
        }

    def facts(self, variant: str) -> dict[str, object]:
        """Numbers of the site in the summary."""
        part, recurrence = self.parts[variant], self.state.recurrence[VARIANTS.index(variant)]
        dims = self.systematic(variant)
        mine = part.of(dims)
        occurrences = mine.count[:, ABSOLUTE].sum(1)
        one_sided = np.maximum(mine.negative, occurrences - mine.negative) >= ONE_SIDED * occurrences
        pairs = int(recurrence.sum())
        return {
            "systematic": len(dims),
            "pairs": pairs,
            "unique": int((recurrence > 0).sum()),
            "in_all": int((recurrence == self.state.sequences).sum()),
            "mean_per_sequence": pairs / max(self.state.sequences, 1),
            "relative_systematic": int(self._shares(part, variant, RELATIVE)[2].sum()),
            "occurrences": int(part.count[:, ABSOLUTE].sum()),
            "one_sided": float(one_sided.mean()) if len(dims) else None,
        }


LARGEST = 16
"""So many of the largest dimensions are shown point by point, systematic or not."""
ONE_SIDED = 0.9
"""A dimension with at least this share of its outliers on one side of zero is called one-sided."""


def _examples(examples: Examples) -> pa.ListArray:
    there = examples.point != NONE
    offsets = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
    values = [pa.array(getattr(examples, name)[there], EXAMPLE.field(name).type) for name in FIELDS]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(values, fields=list(EXAMPLE)))
