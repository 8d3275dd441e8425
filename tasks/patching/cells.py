"""The cells of a study: every condition of every prompt, as edits of bank rows.

Arm `random` has the conditions of arm `feature`, written along the candidate's control direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.engines.interface import Edit
from tasks.patching.seeds import trial_seed
from tasks.patching.spec import Arm, Phase, TrialsParams


@dataclass(frozen=True)
class Cell:
    """All trials that differ in nothing but their seed."""

    prompt: str
    condition: str
    arm: Arm
    edit: Edit | None
    candidate: int | None = None
    layer: int | None = None
    feature: int | None = None
    value_name: str | None = None
    """The contrast group whose mean is patched in."""

    @property
    def feature_key(self) -> str:
        """Part of the trial's seed: "L26-1069" for a feature, "L26" for a layer, empty for the baseline."""
        if self.layer is None:
            return ""
        return f"L{self.layer}" if self.feature is None else f"L{self.layer}-{self.feature}"

    def seed(self, run_seed: int, phase: Phase, trial: int) -> int:
        """Seed of one of its generations."""
        return trial_seed(run_seed, phase, self.prompt, self.condition, self.arm, self.feature_key, trial)


def baseline_condition(prompt: str) -> str:
    """ "safe" -> "safe_baseline" """
    return f"{prompt}_baseline"


def patched_condition(prompt: str, group: str) -> str:
    """With the mean of a contrast group patched in: "safe", "risky" -> "safe_with_risky_patch"."""
    return f"{prompt}_with_{group}_patch"


def baseline(prompt: str) -> Cell:
    """The prompt as it is, without an edit."""
    return Cell(prompt, baseline_condition(prompt), "baseline", None)


def study_cells(p: TrialsParams, candidates: list[dict]) -> list[Cell]:
    """Cells of a shard, in their order.

    `candidates`: rows of the input table, in its order; arms `feature` and `random` take `p.start` to `p.stop`, on the
    `prompts` of the row where it names some, arm `reconstruction` every layer that a row of the table lives on.
    """
    cells: list[Cell] = []
    for arm in p.arms:
        for prompt in p.prompts:
            if arm == "baseline":
                cells.append(baseline(prompt.name))
            elif arm == "reconstruction":
                cells.extend(_reconstruction(p, prompt.name, candidates))
            else:
                chosen = [
                    row for row in candidates[p.start : p.stop] if prompt.name in row.get("prompts", [prompt.name])
                ]
                cells.extend(cell for row in chosen for cell in _patched(p, prompt.name, arm, row))
    return cells


def _reconstruction(p: TrialsParams, prompt: str, candidates: list[dict]) -> list[Cell]:
    a_row_of = {row["layer"]: row["bank_row"] for row in reversed(candidates)}
    return [
        Cell(prompt, f"{prompt}_reconstruction", "reconstruction", Edit(row, None, p.scope, "reconstruct"), layer=layer)
        for layer, row in sorted(a_row_of.items())
    ]


def _patched(p: TrialsParams, prompt: str, arm: Arm, row: dict) -> list[Cell]:
    bank_row = row["bank_row"] if arm == "feature" else row["control_row"]
    return [
        Cell(
            prompt,
            patched_condition(prompt, group),
            arm,
            Edit(bank_row, row[f"value_{side}"], p.scope, p.mode),
            row["candidate"],
            row["layer"],
            row["feature"],
            group,
        )
        for side, group in (("low", p.low), ("high", p.high))
    ]
