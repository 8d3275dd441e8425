"""Old result files of any size, written from repeated text: no activation and no Python object behind them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VALUE = 7.25


@dataclass(frozen=True)
class Large:
    """Every dimension has an outlier of value 7.25 at every point and at the first `hits` positions."""

    batches: int
    dims: int
    points: int
    positions: int
    hits: int
    d: int = 4096

    @property
    def names(self) -> list[str]:
        return [f"layer_{i // 2}_ln_{'mlp' if i % 2 else 'attn'}" for i in range(self.points)]

    def record(self, dim: int) -> dict:
        return {
            "feature_dim": dim,
            "layer_percentage": 1.0,
            "seq_percentage": self.hits / self.positions,
            "max_magnitude": VALUE,
            "total_occurrences": self.points * self.hits,
            "layers_affected": sorted(self.names),
            "example_values": [VALUE] * min(5, self.points * self.hits),
        }

    def text(self) -> Iterator[str]:
        """The file in pieces, as json.dump(indent=2) writes it."""
        records = [self.record(dim) for dim in range(self.dims)]
        yield "{\n" + self._entry(
            "analysis_summary",
            {
                "total_batches": self.batches,
                "total_sequences": self.batches,
                "total_systematic_outliers": self.batches * self.dims,
                "completion_time": "2025-10-24T13:00:00",
            },
        )
        yield self._entry("run_config", {"model": "example/large", "sequence_length": self.positions, "threshold": 6.0})
        top = [{"feature_dim": dim, "max_magnitude": VALUE, "occurrences": self.batches} for dim in range(self.dims)]
        yield self._entry("top_features", top)
        listed = _indented(records, 2)[2:-4]
        yield '  "all_systematic_outliers": [\n' + ",\n".join([listed] * self.batches) + '\n  ],\n  "batch_results": ['
        for batch in range(self.batches):
            yield from self._batch(batch, records)
        yield "\n  ]\n}"

    def _entry(self, key: str, value: object) -> str:
        return f"  {json.dumps(key)}: {_indented(value, 2)},\n"

    def _batch(self, batch: int, records: list[dict]) -> Iterator[str]:
        head = {"batch_id": batch + 1, "run_dir": f"results/run_{batch + 1}", "sequences_processed": 1}
        yield ",\n    " * (batch > 0) or "\n    "
        yield _indented(head, 4)[:-6] + ',\n      "systematic_outliers": ' + _indented(records, 6)
        yield ',\n      "outlier_info": {\n        "feature_outliers": {'
        occurrences = ",\n            ".join(
            _indented({"layer": name, "seq_pos": position, "value": VALUE}, 12)
            for name in self.names
            for position in range(self.hits)
        )
        for dim in range(self.dims):
            yield f'{"," * (dim > 0)}\n          "{dim}": [\n            '
            yield occurrences
            yield "\n          ]"
        share = self.dims * self.hits / (self.d * self.positions) * 100
        shape = [1, self.positions, self.d]
        stats = {"num_outliers": self.dims * self.hits, "max_magnitude": VALUE, "outlier_percentage": share}
        layer_stats = {name: {**stats, "shape": shape} for name in self.names}
        yield '\n        },\n        "layer_stats": ' + _indented(layer_stats, 8)
        yield ',\n        "threshold": 6.0\n      },\n      "timestamp": "2025-10-24T12:00:00"\n    }'

    def size(self) -> int:
        """Bytes of the file, counted without writing it."""
        return sum(map(len, self.text()))

    def write(self, path: Path) -> None:
        with path.open("w") as file:
            file.writelines(self.text())


def _indented(value: object, by: int) -> str:
    return json.dumps(value, indent=2).replace("\n", "\n" + " " * by)
