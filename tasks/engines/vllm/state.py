"""What a worker process holds for the trials in flight: the bank, the edits of the coming pass, counts, random numbers.

A pass goes `prepare` (which token gets which edit), `apply` at the end of every layer, `finish` (count what was found),
`draw` (the next token of every request). Nothing here knows vLLM; `internals` calls it from vLLM's seams.

Shapes: N tokens of a pass, R requests, S slots. The tables have one entry more than there are slots, for what belongs
to none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits, edit_
from tasks.engines.interface import Capture
from tasks.engines.sampling import group_probabilities, sample
from tasks.engines.vllm.captures import Captures, Rows
from tasks.engines.vllm.dictionaries import load_dictionary
from tasks.engines.vllm.slots import Slots, Step
from tasks.sae.sae import SAE


@dataclass(frozen=True)
class Call:
    """What holds for all requests of one call of the engine. Plain data."""

    rows: tuple[int, ...] = ()
    residual_layers: tuple[int, ...] = ()
    positions: tuple[str, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    """Token groups of a first-token screen."""
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What requests left behind, one entry per slot asked for."""

    applied: np.ndarray
    """[n] int64: distinct positions edited in a forward pass."""
    read: np.ndarray
    """[n] int64: tokens that the model has read, those whose keys and values came from the prefix cache included."""
    f: np.ndarray
    """[n] float32: activation before the edit at the prompt's last position, NaN without an edit."""
    relative_delta: np.ndarray
    """[n] float32"""
    masses: np.ndarray
    """[n, G] float64"""
    rows: Rows | None


class WorkerState:
    """static: the same kernels in every pass whatever its edits, as CUDA graphs need; else only what a pass needs."""

    def __init__(
        self,
        bank: Bank | None,
        d_model: int,
        max_requests: int,
        max_tokens: int,
        device: torch.device,
        static: bool,
        capture: Capture,
    ):
        self.device, self._static, self._d_model, self._max_requests = device, static, d_model, max_requests
        self.bank = None if bank is None else bank.to(device)
        self._layer_of = np.zeros(0, np.int64) if bank is None else bank.layer.numpy()
        self._full_encode = np.zeros(0, bool) if bank is None else bank.full_encode.numpy()
        self._slots = Slots(slot_count(max_requests))
        self._dictionaries: dict[int, SAE] = {}
        self._edits, self._found = TokenEdits.empty(max_tokens, device), Found.empty(max_tokens, device)
        size = self._slots.size + 1
        self._applied, self._read = (torch.zeros(size, dtype=torch.int64, device=device) for _ in range(2))
        self._f, self._delta = (torch.zeros(size, dtype=torch.float32, device=device) for _ in range(2))
        self._edit_layers: set[int] = set(bank.layers) if bank is not None and static else set()
        self._dictionary_layers: set[int] = set()
        self._captures: Captures | None = self._new_captures(capture) if static and not capture.empty else None
        self._step: Step | None = None
        self._where: tuple[Tensor, Tensor] | None = None
        self.begin(Call())

    def begin(self, call: Call) -> None:
        """Before the requests of a call. With `static` only the capture given at the start can be asked for."""
        capture = Capture(call.rows, call.residual_layers, call.positions)
        if self._static:
            if self._captures is not None:
                self._captures.restart(not capture.empty)
        else:
            self._captures = None if capture.empty else self._new_captures(capture)
        self._setting = call.temperature, call.top_p
        self._groups = [torch.tensor(group, device=self.device) for group in call.groups]
        self._masses = torch.zeros(self._slots.size + 1, len(call.groups), dtype=torch.float64, device=self.device)

    def _new_captures(self, capture: Capture) -> Captures:
        return Captures(
            capture,
            self.bank,
            self._dictionaries.__getitem__,
            self._d_model,
            self._slots.size,
            self._max_requests,
            self.device,
            self._static,
        )

    def add_dictionary(self, path: Path | str) -> None:
        """A layer's whole dictionary, as `save_dictionary` wrote it."""
        sae = load_dictionary(path).to(self.device)
        self._dictionaries[sae.layer] = sae

    def prepare(self, requests: Sequence[Mapping], computed: np.ndarray, scheduled: np.ndarray) -> None:
        """Before a pass in which request i (its `Instructions` as a mapping) reads scheduled[i] tokens after
        computed[i] ones.
        """
        new = [request["slot"] for request in requests if self._slots.put(request)]
        if new:
            self._forget(new)
        step = self._step = self._slots.step([request["slot"] for request in requests], computed, scheduled)
        integers = self._upload(np.stack([step.slot, step.position, step.row, step.reconstruct, step.is_last]))
        slot, position, row, reconstruct, is_last = integers
        # The prompt's last token tells f and the change; every other token tells an entry that is never read.
        self._where = slot, position, torch.where((is_last != 0) & (row >= 0), slot, self._slots.size)
        if self.bank is not None:
            self._edits.fill(self.bank, row, self._upload(step.value), reconstruct != 0)
            self._found.clear()
            if not self._static:
                self._choose_layers(step)
        if self._captures is not None:
            self._captures.begin(step)

    def _choose_layers(self, step: Step) -> None:
        layer = self._layer_of[step.row]
        edited = step.row >= 0
        self._edit_layers = set(layer[edited].tolist())
        needs = edited & (step.reconstruct | self._full_encode[step.row])
        self._dictionary_layers = set(layer[needs].tolist())

    def _forget(self, new: list[int]) -> None:
        index = torch.tensor(new, device=self.device)
        self._applied[index] = self._read[index] = 0
        self._f[index] = self._delta[index] = float("nan")
        for slot in new:
            if self._captures is not None:
                self._captures.forget(slot)

    def apply(self, hidden: Tensor, residual: Tensor, layer: int) -> None:
        """At the end of block `layer`: edit hidden [N, d] in place, the stream being hidden + residual; then record."""
        if layer in self._edit_layers:
            dictionary = self._dictionaries[layer] if layer in self._dictionary_layers else None
            edit_(hidden, residual, layer, self._edits, self.bank, self._found, dictionary)
        if self._captures is not None and layer in self._captures.layers:
            self._captures.read(layer, hidden, residual)

    def finish(self, input_ids: Tensor) -> None:
        """After the pass: count. input_ids [at least N]."""
        slot, position, last_slot = self._where
        n = slot.shape[0]
        if self.bank is not None:
            # A position that is read again after a preemption is edited again, and counted once.
            fresh = position >= self._read[slot]
            self._applied.index_add_(0, slot, (self._found.applied[:n] * fresh).long())
            self._f[last_slot], self._delta[last_slot] = self._found.f[:n], self._found.relative_delta[:n]
            self._edits.layer.fill_(-1)  # passes of vLLM's own, without requests, edit nothing
        self._read.scatter_reduce_(0, slot, position + 1, "amax")
        if not self._static:
            self._edit_layers = set()
        if self._captures is not None:
            self._captures.store(input_ids)

    def draw(self, logits: Tensor) -> Tensor:
        """The next token of each request of the pass: logits [R, V] float32 -> [R] int64.

        Requests still reading their prompt get a token that nobody looks at.
        """
        step = self._step
        if logits.shape[0] != len(step.slots):
            raise RuntimeError(f"logits of {logits.shape[0]} rows for a pass of {len(step.slots)} requests")
        temperature, top_p, uniform = self._upload(np.stack([step.temperature, step.top_p, step.uniform]))
        if self._groups:
            mass = group_probabilities(logits, self._groups, *self._setting)
            self._masses[self._upload(np.where(step.generated == 0, step.slots, self._slots.size))] = mass
        return sample(logits, temperature.float(), top_p.float(), uniform, step.kinds)

    def collect(self, slots: Sequence[int]) -> Outcome:
        """What finished requests left; one wait for the device."""
        index = torch.tensor(slots, device=self.device)
        applied, read = torch.stack([self._applied[index], self._read[index]]).cpu().numpy()
        f, delta = torch.stack([self._f[index], self._delta[index]]).cpu().numpy()
        rows = None if self._captures is None else self._captures.collect(np.asarray(slots, np.int64))
        return Outcome(applied, read, f, delta, self._masses[index].cpu().numpy(), rows)

    def _upload(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def slot_count(max_requests: int) -> int:
    """Slots of an engine: a finished request keeps its own until it is collected, with others."""
    return 2 * max_requests
