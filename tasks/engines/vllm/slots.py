"""The requests in flight and the plan of a forward pass, on the host.

A request owns a slot from its first pass until the driver has collected what it left there. R requests of a pass,
N tokens: the requests' tokens lie one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.engines.sampling import Kinds, uniforms
from tasks.engines.vllm.requests import Instructions


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass."""

    slots: np.ndarray
    """[R] int64: slot of each request."""
    slot: np.ndarray
    """[N] int64: slot of each token's request."""
    position: np.ndarray
    """[N] int64: absolute position of each token."""
    row: np.ndarray
    """[N] int64: bank row that edits the token, -1 for none."""
    value: np.ndarray
    """[N] float32: NaN where there is none."""
    reconstruct: np.ndarray
    """[N] bool"""
    is_last: np.ndarray
    """[N] bool: the last position of the prompt."""
    ends: np.ndarray
    """[R] int64: index of each request's last token."""
    generated: np.ndarray
    """[R] int64: which generated token the request's logits decide; negative while its prompt is being read."""
    temperature: np.ndarray
    """[R] float64"""
    top_p: np.ndarray
    """[R] float64"""
    uniform: np.ndarray
    """[R] float64: the trial's own random number for that token."""

    @property
    def kinds(self) -> Kinds:
        sampled = self.temperature > 0
        return Kinds(bool((~sampled).any()), bool(sampled.any()), bool((sampled & (self.top_p < 1)).any()))


class Slots:
    """Instructions by slot, as arrays."""

    def __init__(self, size: int):
        self.size = size
        self.serial = np.full(size, -1, np.int64)
        self._prompt_length, self._first, self._stop, self._row = np.zeros((4, size), np.int64)
        self._value = np.zeros(size, np.float32)
        self._reconstruct = np.zeros(size, bool)
        self._temperature, self._top_p = np.ones((2, size))
        self._uniforms = np.zeros((size, 1))

    def put(self, request: Mapping) -> bool:
        """Know a request by its `Instructions`; True when it is new in its slot."""
        slot = request["slot"]
        if self.serial[slot] == request["serial"]:
            return False
        what = Instructions(**request)
        self.serial[slot] = what.serial
        self._prompt_length[slot], self._first[slot], self._stop[slot] = what.prompt_length, what.first, what.stop
        self._row[slot], self._reconstruct[slot] = what.row, what.reconstruct
        self._value[slot] = np.nan if what.value is None else what.value
        self._temperature[slot], self._top_p[slot] = what.temperature, what.top_p
        n = what.max_new_tokens
        if n > self._uniforms.shape[1]:
            self._uniforms = np.pad(self._uniforms, ((0, 0), (0, n - self._uniforms.shape[1])))
        self._uniforms[slot, :n] = uniforms(what.seed, n)
        return True

    def step(self, slots: Sequence[int], computed: np.ndarray, scheduled: np.ndarray) -> Step:
        """The pass in which request i reads `scheduled[i]` tokens after the `computed[i]` that are in its cache."""
        slots = np.asarray(slots, np.int64)
        computed, scheduled = computed.astype(np.int64), scheduled.astype(np.int64)
        ends = scheduled.cumsum()
        slot = slots.repeat(scheduled)
        position = np.arange(len(slot)) + (computed - (ends - scheduled)).repeat(scheduled)
        edited = (position >= self._first[slot]) & (position < self._stop[slot])
        generated = computed + scheduled - self._prompt_length[slots]
        return Step(
            slots=slots,
            slot=slot,
            position=position,
            row=np.where(edited, self._row[slot], -1),
            value=self._value[slot],
            reconstruct=self._reconstruct[slot],
            is_last=position == self._prompt_length[slot] - 1,
            ends=ends - 1,
            generated=generated,
            temperature=self._temperature[slots],
            top_p=self._top_p[slots],
            # A request may be run once past its end before the scheduler knows; that token is dropped.
            uniform=self._uniforms[slots, generated.clip(0, self._uniforms.shape[1] - 1)],
        )
