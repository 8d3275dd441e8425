"""Captured rows of a finished trial, with the labels that its own text gives them."""

from __future__ import annotations

import numpy as np

from tasks.engines.interface import Capture, CapturedRow, Position, Trial
from tasks.engines.vllm.captures import Rows


def captured(
    trial: Trial, tokens: tuple[int, ...], rows: Rows | None, slot: int, capture: Capture
) -> tuple[tuple[CapturedRow, ...], np.ndarray | None, np.ndarray | None]:
    """(labels [n], features [n, F] float16, residuals [n, L, d] float32) of the trial in `slot`.

    Raises RuntimeError when a row is missing or was read from another token than the trial's text has there, and
    OverflowError when an activation does not fit float16.
    """
    if capture.empty:
        return (), None, None
    of_slot = (rows.slot == slot).nonzero()[0]
    at = dict(zip(rows.position[of_slot].tolist(), of_slot.tolist(), strict=True))
    text = (*trial.prompt, *tokens)
    labels, chosen = [], []
    for kind, position in _wanted(capture, len(trial.prompt), len(text)):
        if position not in at or rows.token[at[position]] != text[position]:
            raise RuntimeError(f"trial {trial.id}: no capture of token {text[position]} at position {position}")
        labels.append(CapturedRow(trial.id, kind, position, text[position]))
        chosen.append(at[position])
    features = _as_float16(rows.features[chosen], labels) if capture.rows else None
    residuals = rows.residuals[chosen] if capture.residual_layers else None
    return tuple(labels), features, residuals


def _wanted(capture: Capture, prompt_length: int, text_length: int) -> list[tuple[Position, int]]:
    """The model reads all tokens but the last one generated."""
    last, final = prompt_length - 1, text_length - 2
    if "decode" in capture.positions:
        return [("decode", position) for position in range(last, final + 1)]
    ends: dict[Position, int] = {"last": last, "final": final}
    return [(kind, position) for kind, position in ends.items() if kind in capture.positions]


def _as_float16(features: np.ndarray, labels: list[CapturedRow]) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        n, worst = np.unravel_index(np.argmax(np.abs(features)), features.shape)
        raise OverflowError(
            f"trial {labels[n].trial}, position {labels[n].position}: the activation of captured feature number "
            f"{worst} is {features[n, worst]}, beyond float16 (65504); capture that feature elsewhere or leave it out"
        )
    return half
