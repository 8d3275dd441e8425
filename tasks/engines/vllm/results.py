"""What a finished trial left, checked against what it should have left."""

from __future__ import annotations

import numpy as np

from tasks.engines.interface import Capture, CapturedRow, check_edits
from tasks.engines.recorder import check_float16, labels_of
from tasks.engines.vllm.driver import Finished
from tasks.engines.vllm.requests import edited_range


def checked(done: Finished) -> int:
    """Positions edited, those included whose keys and values were read from the prefix cache.

    They were edited by the request that stored them, which was checked too. Raises `EditNotApplied`.
    """
    trial, n = done.trial, len(done.tokens)
    first, stop = edited_range(trial.edit, len(trial.prompt))
    from_cache = max(0, min(stop, done.cached) - first)
    # vLLM may run a request once more before it knows that it has ended; that token counts for nothing.
    read = int(done.outcome.read[done.entry])
    beyond = max(0, min(stop, read) - max(first, len(trial.prompt) + n - 1))
    applied = int(done.outcome.applied[done.entry])
    return check_edits(trial, applied - beyond, n, unread=from_cache) + from_cache


def edit_found(done: Finished) -> tuple[float | None, float | None]:
    """(activation before the edit, relative change) at the prompt's last position."""
    if done.trial.edit is None:
        return None, None
    return float(done.outcome.f[done.entry]), float(done.outcome.relative_delta[done.entry])


def captured(done: Finished, capture: Capture) -> tuple[tuple[CapturedRow, ...], np.ndarray | None, np.ndarray | None]:
    """(labels [n], features [n, F] float16, residuals [n, L, d] float32).

    Raises RuntimeError when a row is missing or was read from another token than the trial's text has there, and
    OverflowError when an activation does not fit float16.
    """
    if capture.empty:
        return (), None, None
    rows = done.outcome.rows
    of_slot = (rows.slot == done.slot).nonzero()[0]
    at = dict(zip(rows.position[of_slot].tolist(), of_slot.tolist(), strict=True))
    labels = labels_of(done.trial, done.tokens, capture.positions)
    for label in labels:
        if label.position not in at or rows.token[at[label.position]] != label.token:
            raise RuntimeError(
                f"trial {label.trial}: token {label.token} at position {label.position} was not recorded"
            )
    chosen = [at[label.position] for label in labels]
    features = rows.features[chosen] if capture.rows else None
    if features is not None:
        check_float16(features, labels)
    return labels, features, rows.residuals[chosen] if capture.residual_layers else None
