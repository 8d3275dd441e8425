"""The torch engine: transformers' own model code, run on a batch of trials that differ in one edit each.

A batch has a fixed number of slots. Each slot holds one trial at its own position; when a trial ends, its slot takes
the next one, so the batch stays full until the queue is empty and then shrinks. All trials of a prompt share the
prompt's keys and values (`attention`). Edits, captures and their counts happen in hooks on the blocks (`hooks`).

When memory runs out, the batch size is halved and the trials in flight start again from their beginning; since a
trial's result is a function of the trial alone, this changes nothing but time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.engines.attention import decoding
from tasks.engines.bank import Bank
from tasks.engines.batch import Batch, Slot, edits_by_layer
from tasks.engines.head import Float32Head
from tasks.engines.hooks import BlockHooks
from tasks.engines.interface import (
    Capture,
    Cell,
    CellResult,
    EditNotApplied,
    Trial,
    TrialResult,
    expected_edits,
)
from tasks.engines.prefixes import PrefixStore
from tasks.engines.recorder import Recorder
from tasks.engines.sampling import group_probabilities, sample
from tasks.errors import BadInput
from tasks.models.load import LoadedModel
from tasks.models.memory import is_out_of_memory
from tasks.sae.sae import SAE

DEFAULT_BATCH_SIZE = {"cpu": 128, "cuda": 256}


class TorchEngine:
    """See `tasks.engines.interface.Engine`.

    bank: the rows that edits and captures name; None when there are none.
    sae_of: layer -> SAE, needed for mode `reconstruct` and TopK gates only.
    batch_size: slots; default by device. end_tokens: ids that end a trial; default the model's own.
    share_prefixes: False computes each trial's prompt anew (slower; same results).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        bank: Bank | None = None,
        sae_of: Callable[[int], SAE] | None = None,
        batch_size: int | None = None,
        end_tokens: Sequence[int] | None = None,
        share_prefixes: bool = True,
        prefix_bytes: int = 2 * 2**30,
    ):
        self.model, self.layout = loaded.model, loaded.layout
        _check_supported(self.model)
        self.device = next(self.model.parameters()).device
        self.bank = None if bank is None else bank.to(self.device)
        self.batch_size = batch_size or DEFAULT_BATCH_SIZE[self.device.type]
        self.end_tokens = frozenset(_end_tokens(self.model) if end_tokens is None else end_tokens)
        self._sae_of = sae_of
        self._head = Float32Head(self.layout.lm_head)
        self._hooks = BlockHooks(self.layout, self.bank, sae_of)
        self._make_edits = partial(
            edits_by_layer,
            layer_of_row=[] if bank is None else bank.layer.tolist(),
            full_encode=[] if bank is None else bank.full_encode.tolist(),
            device=self.device,
        )
        self._prefixes = PrefixStore(self.model, self._hooks, self._make_edits, prefix_bytes, share_prefixes)

    def generate(self, trials: Iterable[Trial], capture: Capture | None = None) -> Iterator[TrialResult]:
        """Run trials; results come as they finish.

        Raises `EditNotApplied` when an edit did not fire exactly where its scope says, `OverflowError` when a
        captured activation does not fit float16, and torch's out-of-memory error when one slot is too many.
        """
        capture = Capture() if capture is None else capture
        recorder = Recorder(capture, self.bank, self._sae_of, self.layout.d_model)
        queue = deque(trials)
        layers = sorted({*(self.bank.layers if self.bank else ()), *capture.residual_layers})
        while queue:
            with torch.inference_mode(), self._hooks.installed(layers):
                yield from self._run(queue, recorder)

    def first_token(
        self,
        cells: Iterable[Cell],
        groups: Sequence[Sequence[int]],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[CellResult]:
        """One forward pass of one token per cell, on the shared prefix."""
        ids = [torch.tensor(group, device=self.device) for group in groups]
        recorder = Recorder(Capture(), None, None, self.layout.d_model)
        queue = deque(cells)
        while queue:
            taken = [queue.popleft() for _ in range(min(self.batch_size, len(queue)))]
            trials = [Trial(cell.id, cell.prompt, seed=0, edit=cell.edit, max_new_tokens=1) for cell in taken]
            try:
                with torch.inference_mode(), self._hooks.installed(self.bank.layers if self.bank else []):
                    batch = self._batch(trials, capacity=1)
                    logits = self._forward(batch, recorder)
                    mass = group_probabilities(logits, ids, temperature, top_p).cpu().numpy()
            except RuntimeError as error:
                self._halve(error)
                queue.extendleft(reversed(taken))
                continue
            found = _EditOutcome.of(batch)
            for i, cell in enumerate(taken):
                found.checked(i, n_generated=1)
                yield CellResult(cell.id, mass[i], found.f[i], found.relative_delta[i])

    def _run(self, queue: deque[Trial], recorder: Recorder) -> Iterator[TrialResult]:
        """Until the queue is empty, or memory runs out: then the trials in flight are back in the queue."""
        capacity = max(trial.max_new_tokens for trial in queue)
        running: dict[int, Trial] = {}
        try:
            batch = self._batch(self._take(queue, self.batch_size, running), capacity)
            while len(batch):
                logits = self._forward(batch, recorder)
                tokens = sample(logits, batch.temperature, batch.top_p, batch.uniforms()).tolist()
                for slot, token in zip(batch.slots, tokens, strict=True):
                    slot.tokens.append(token)
                done = [i for i, slot in enumerate(batch.slots) if self._finished(slot)]
                recorder.store(batch, done)
                for result in self._results(batch, done, recorder):
                    del running[result.id]
                    yield result
                if done:
                    self._refill(batch, done, self._take(queue, len(done), running))
        except RuntimeError as error:
            self._halve(error)
            queue.extendleft(reversed(running.values()))

    def _take(self, queue: deque[Trial], n: int, running: dict[int, Trial]) -> list[Trial]:
        taken = [queue.popleft() for _ in range(min(n, len(queue)))]
        for trial in taken:
            if trial.id in running:
                raise ValueError(f"trial id {trial.id} is given twice; ids must be unique within a call")
            running[trial.id] = trial
        return taken

    def _batch(self, trials: list[Trial], capacity: int) -> Batch:
        slots = [self._slot(trial) for trial in trials]
        return Batch(slots, capacity, self.layout.n_layers, self.device, self._make_edits)

    def _slot(self, trial: Trial) -> Slot:
        return Slot.start(trial, self._prefixes.get(trial.prompt, trial.edit))

    def _forward(self, batch: Batch, recorder: Recorder) -> Tensor:
        """One token of every slot -> logits [B, V]."""
        ids, positions = batch.prepare()
        self._hooks.current = recorder.begin(batch)
        with decoding(self.model, batch.cache), self._head.installed():
            out = self.model(input_ids=ids, position_ids=positions, past_key_values=batch.cache, use_cache=True)
        return out.logits[:, -1]

    def _finished(self, slot: Slot) -> bool:
        return len(slot.tokens) == slot.trial.max_new_tokens or slot.tokens[-1] in self.end_tokens

    def _results(self, batch: Batch, done: list[int], recorder: Recorder) -> Iterator[TrialResult]:
        found = _EditOutcome.of(batch) if done else None
        for i in done:
            slot = batch.slots[i]
            features, residuals = recorder.collect(slot)
            yield TrialResult(
                id=slot.trial.id,
                tokens=tuple(slot.tokens),
                finish="eos" if slot.tokens[-1] in self.end_tokens else "length",
                edits_applied=found.checked(i, len(slot.tokens)),
                f_before=found.f[i],
                relative_delta=found.relative_delta[i],
                rows=tuple(slot.rows),
                features=features,
                residuals=residuals,
            )

    def _refill(self, batch: Batch, done: list[int], trials: list[Trial]) -> None:
        """Put new trials into the slots of finished ones; slots that stay empty are dropped."""
        if trials:
            batch.replace({i: self._slot(trial) for i, trial in zip(done, trials, strict=False)})
        empty = set(done[len(trials) :])
        if empty:
            batch.keep([i for i in range(len(batch)) if i not in empty])

    def _halve(self, error: RuntimeError) -> None:
        """Halve the batch after running out of memory; any other error, and the last slot's, is raised."""
        if not is_out_of_memory(error) or self.batch_size == 1:
            raise error
        self.batch_size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _EditOutcome:
    """What a batch's edit log says, on the host."""

    trials: list[Trial]
    applied: list[int]
    f: list[float | None]
    relative_delta: list[float | None]

    @classmethod
    def of(cls, batch: Batch) -> _EditOutcome:
        log = batch.log
        none_for_nan = [None if x != x else x for x in log.f.tolist()]
        deltas = [None if x != x else x for x in log.relative_delta.tolist()]
        return cls([slot.trial for slot in batch.slots], log.applied.tolist(), none_for_nan, deltas)

    def checked(self, i: int, n_generated: int) -> int:
        """The number of positions edited in slot i, which must be what the trial's scope says."""
        trial, expected = self.trials[i], expected_edits(self.trials[i], n_generated)
        if self.applied[i] != expected:
            raise EditNotApplied(
                f"trial {trial.id}: the edit of bank row {trial.edit and trial.edit.row} was applied at "
                f"{self.applied[i]} positions, its scope asks for {expected}"
            )
        return self.applied[i]


def _check_supported(model: PreTrainedModel) -> None:
    if not model._supports_attention_backend:
        raise BadInput(
            "model.source",
            model.config.model_type,
            "this architecture does its attention outside transformers' attention interface, so its trials cannot "
            "share a prompt's keys and values",
            "choose a model whose class in transformers has _supports_attention_backend (Llama, Qwen, Mistral, "
            "Gemma, GPT-2, OPT, GPT-NeoX, Phi, OLMo, Mixtral, GPT-OSS and most others)",
        )


def _end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    ids = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
