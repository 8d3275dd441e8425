"""The GPUs of this host, and who has leased them: the table of ``python -m flows gpus`` and of the Prefect UI."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from flows.devices import installed_gpus
from flows.locks import runtime_folder
from flows.slots import GPU_PREFIX, Occupant, occupant_of, slot_file

COLUMNS = ("slot", "device", "memory", "state", "flow", "shard", "since")


@dataclass(frozen=True)
class SlotRow:
    """One slot, as people see it."""

    slot: str
    device: str
    memory: str
    occupant: Occupant | None

    def cells(self) -> dict[str, str]:
        """The row of a table."""
        held = self.occupant
        return {
            "slot": self.slot,
            "device": self.device,
            "memory": self.memory,
            "state": "in use" if held else "free",
            "flow": held.flow if held else "",
            "shard": held.shard if held else "",
            "since": f"{datetime.fromtimestamp(held.since, UTC):%Y-%m-%d %H:%M:%S} UTC" if held and held.since else "",
        }


def slot_rows(folder: Path | None = None) -> list[SlotRow]:
    """Every GPU of this host, and the places on its CPU that are in use, as flows of this user lease them."""
    folder = folder or runtime_folder()
    rows = [
        SlotRow(
            slot=f"GPU {gpu.index}",
            device=f"{gpu.name} {gpu.uuid}".strip(),
            memory=gpu.memory,
            occupant=occupant_of(slot_file(folder, f"{GPU_PREFIX}{gpu.uuid}")),
        )
        for gpu in installed_gpus()
    ]
    for path in sorted(folder.glob("cpu-*.lock")):
        if occupant := occupant_of(path):
            rows.append(SlotRow(slot=path.stem, device="", memory="", occupant=occupant))
    return rows


def slot_table(rows: list[SlotRow]) -> list[dict[str, str]]:
    """Rows for a table artifact."""
    return [row.cells() for row in rows]


def terminal_table(rows: list[SlotRow]) -> Table:
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in slot_table(rows):
        table.add_row(*(row[name] for name in COLUMNS), style=None if row["flow"] or row["shard"] else "dim")
    return table
