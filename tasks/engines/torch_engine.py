"""The torch engine: transformers' own model code, run on a batch of trials that differ in one edit each.

The rows of a batch stand in tiles that share a prompt's keys and values (`attention`, `tiles`), each row at its own
position. Edits, captures and their counts happen in hooks on the blocks (`hooks`).

On a CPU a row stands for all trials of a cell that agree so far (`branching`).

On CUDA a row holds one trial; when it ends, its row takes the next one, so the batch stays full until the queue is
empty and then shrinks (`batch`). One step of such a batch needs nothing from the host (`state`): it is recorded once
and replayed (`graphs`), the host learns a little later which rows have ended, and results are copied while the next
steps run (`outbox`).

When memory runs out, the batch size is halved and the trials in flight start again from their beginning; since a
trial's result is a function of the trial alone, this changes nothing but time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.engines.attention import decoding
from tasks.engines.bank import Bank
from tasks.engines.batch import Batch, Plan, edited_layers
from tasks.engines.branching import BranchingBatch, branches
from tasks.engines.edit import has_kernel
from tasks.engines.graphs import GraphedStep
from tasks.engines.head import Float32Head
from tasks.engines.hooks import BlockHooks
from tasks.engines.interface import (
    Capture,
    Cell,
    CellResult,
    Trial,
    TrialResult,
    check_edits,
)
from tasks.engines.memory import BatchMemory, choose_batch_size
from tasks.engines.outbox import Outbox
from tasks.engines.prefixes import PrefixStore
from tasks.engines.recorder import Recorder
from tasks.engines.sampling import group_probabilities, sample
from tasks.engines.tiles import LEAST_ROWS, TrialQueue, dimensions
from tasks.errors import BadInput
from tasks.models.memory import free_bytes, is_out_of_memory
from tasks.sae.sae import SAE

if TYPE_CHECKING:
    from tasks.models.load import LoadedModel  # needs more packages than a model that was made by hand

Result = TypeVar("Result")

SHRINK_BELOW = {"cpu": 0.75, "cuda": 0.5}
"""A batch whose queue is empty shrinks when fewer than this share of its rows are in use."""


class TorchEngine:
    """See `tasks.engines.interface.Engine`.

    bank: the rows that edits and captures name; None when there are none.
    sae_of: layer -> SAE, needed for mode `reconstruct` and TopK gates only.
    batch_size: rows at most; default what the memory holds. end_tokens: ids that end a trial; default the model's own.
    share_prefixes: False computes each trial's prompt anew (slower; same results).
    branching: whether trials of a cell that agree so far are computed once; default by device (same results).
    lag: steps by which the host may learn late that a row has ended; default by device.
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
        lag: int | None = None,
        branching: bool | None = None,
    ):
        self.model, self.layout = loaded.model, loaded.layout
        _check_supported(self.model)
        self.device = self.layout.devices[0]
        self.bank = None if bank is None else bank.to(self.device)
        self._most = batch_size
        self.batch_size = batch_size
        """Rows at most of the last batch; None before the first when it is chosen by memory."""
        self.end_tokens = frozenset(_end_tokens(self.model) if end_tokens is None else end_tokens)
        self._end_tokens = torch.tensor(sorted(self.end_tokens), dtype=torch.int64, device=self.device)
        self._sae_of, self._lag, self._share = sae_of, lag, share_prefixes
        self._branching = self.device.type == "cpu" if branching is None else branching
        self._head = Float32Head(self.layout.lm_head)
        self._hooks = BlockHooks(self.layout, self.bank, sae_of)
        self._layer_of = [] if bank is None else bank.layer.tolist()
        self._full_encode = [] if bank is None else bank.full_encode.tolist()
        self._prefixes = PrefixStore(self.model, self.device, self._hooks, self.bank, prefix_bytes, share_prefixes)

    def generate(self, trials: Iterable[Trial], capture: Capture | None = None) -> Iterator[TrialResult]:
        """Run trials; results come as they finish.

        Raises `EditNotApplied` when an edit did not fire exactly where its scope says, `OverflowError` when a
        captured activation does not fit float16, and torch's out-of-memory error when one row is too many.
        """
        capture = Capture() if capture is None else capture
        queue = TrialQueue(trials)
        run = self._run_branching if self._branching else self._run
        while queue.unfinished:
            yield from self._retrying(queue, run(queue, capture))

    def first_token(
        self,
        cells: Iterable[Cell],
        groups: Sequence[Sequence[int]] | None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[CellResult]:
        """One forward pass of one token per cell, on the shared prefix. groups: None for every token by itself."""
        ids = None if groups is None else [torch.tensor(group, device=self.device) for group in groups]
        queue = TrialQueue(Trial(cell.id, cell.prompt, seed=0, edit=cell.edit, max_new_tokens=1) for cell in cells)
        while queue.unfinished:
            yield from self._retrying(queue, self._screen(queue, ids, temperature, top_p))

    def _retrying(self, queue: TrialQueue, results: Iterator[Result]) -> Iterator[Result]:
        """Until the queue is done, or memory runs out: then the batch is halved and what was in flight waits again."""
        try:
            yield from results
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.batch_size == 1:
                raise
        else:
            return
        # Here the error is gone, and with its traceback the tensors of the batch that did not fit.
        self._most = self.batch_size // 2
        queue.restart()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _screen(
        self, queue: TrialQueue, groups: list[Tensor] | None, temperature: float, top_p: float
    ) -> Iterator[CellResult]:
        with torch.inference_mode():
            batch = self._batch(queue, Recorder.nothing(self.device))
        results = Outbox(self.device, self._lag)
        while queue.unfinished:
            with torch.inference_mode():
                batch.refill(queue, self._prefixes.get)
                rows = batch.occupied
                if rows:
                    plan = batch.plan(self._layer_of, self._full_encode)
                    logits = self._forward(batch, plan)
                    batch.end_pass(plan, batch.state.next_input, self._end_tokens)
                    batch.passed()
                    mass = group_probabilities(logits, groups, temperature, top_p)
                    results.send(*batch.free(rows, {"mass": mass}))
                arrived = list(results.arrived(wait=not queue.waiting))
            for cells, found in arrived:
                for i, cell in enumerate(cells):
                    queue.finish(cell)
                    check_edits(cell, int(found["applied"][i]), n_generated=1)
                    yield CellResult(
                        cell.id, found["mass"][i], _number(found["f"][i]), _number(found["relative_delta"][i])
                    )

    def _run(self, queue: TrialQueue, capture: Capture) -> Iterator[TrialResult]:
        with torch.inference_mode():
            recorder = Recorder(capture, self.bank, self._sae_of, self.layout.d_model, self.device)
            batch = self._batch(queue, recorder)
        step = self._step_of(batch, queue)
        flags, results = Outbox(self.device, self._lag), Outbox(self.device, self._lag)
        while queue.unfinished:
            with torch.inference_mode():
                if not queue.waiting and 0 < len(batch.occupied) < SHRINK_BELOW[self.device.type] * len(batch):
                    batch.shrink()
                    step, flags = self._step_of(batch, queue), Outbox(self.device, self._lag)
                batch.refill(queue, self._prefixes.get)
                if batch.occupied:
                    step(batch.plan(self._layer_of, self._full_encode))
                    done = set(batch.passed())
                    flags.send(batch.passes, {"live": batch.state.live})
                    for passes, now in flags.arrived():
                        done.update(batch.ended(now["live"], passes))
                    if done:
                        results.send(*batch.free(sorted(done)))
                arrived = list(results.arrived(wait=not batch.occupied))
            for trials, found in arrived:
                for i, trial in enumerate(trials):
                    queue.finish(trial)
                    yield self._result(trial, {name: values[i] for name, values in found.items()}, recorder)

    def _run_branching(self, queue: TrialQueue, capture: Capture) -> Iterator[TrialResult]:
        with torch.inference_mode():
            recorder = Recorder(capture, self.bank, self._sae_of, self.layout.d_model, self.device)
            batch = self._branching_batch(queue, recorder)
        while queue.unfinished:
            with torch.inference_mode():
                batch.refill(queue, self._prefixes.get)
                plan = batch.plan(self._layer_of, self._full_encode)
                logits = self._forward(batch, plan)
                row, uniform = batch.drawing()
                drawn = sample(logits, batch.state.temperature, batch.state.top_p, uniform, plan.kinds, row)
                batch.account(plan)
                ended, held = batch.take(batch.branch(drawn, self._end_tokens))
            for i, trials in enumerate(ended):
                of_branch = {name: values[i].numpy() for name, values in held.items()}
                for trial in trials:
                    queue.finish(trial)
                    yield self._result(trial, of_branch, recorder)

    def _batch(self, queue: TrialQueue, recorder: Recorder) -> Batch:
        most, prefixes, made_of = self._sizes(queue, recorder)
        least = LEAST_ROWS[self.device.type]
        tiles, rows = dimensions(prefixes, max(most, least))
        return Batch(max(tiles, -(-least // rows)), rows, **made_of)

    def _branching_batch(self, queue: TrialQueue, recorder: Recorder) -> BranchingBatch:
        most, prefixes, made_of = self._sizes(queue, recorder)
        return BranchingBatch(most, prefixes, **made_of)

    def _sizes(self, queue: TrialQueue, recorder: Recorder) -> tuple[int, list[int], dict[str, Any]]:
        """Trials in flight at most, trials of each prefix, and what every batch for these trials is made of."""
        trials = list(queue.unfinished.values())
        capacity = max(trial.max_new_tokens for trial in trials)
        prefix_capacity = max(len(trial.prompt) for trial in trials) - 1
        prefixes = queue.counts() if self._share else [1] * len(trials)
        self.batch_size = self._most or self._fitting(trials, prefixes, capacity, prefix_capacity, recorder)
        made_of = {
            "prefix_capacity": prefix_capacity,
            "capacity": capacity,
            "n_layers": self.layout.n_layers,
            "recorder": recorder,
            "bank": self.bank,
            "device": self.device,
        }
        return self.batch_size, prefixes, made_of

    def _fitting(
        self, trials: list[Trial], prefixes: list[int], capacity: int, prefix_capacity: int, recorder: Recorder
    ) -> int:
        """Rows that the memory holds beside what is there already."""
        whole = (
            edited_layers([trial.edit for trial in trials], self._layer_of, self._full_encode) | recorder.whole_layers
        )
        widest = max((self._sae_of(layer).d_sae for layer in whole), default=0) if self._sae_of else 0
        memory = BatchMemory.estimate(self.model, capacity, prefix_capacity, recorder.capture, widest)
        devices = {*self.layout.devices}
        free = len(devices) * min(free_bytes(device) for device in devices)  # a split model's cache is split too
        shape = branches if self._branching else dimensions
        return choose_batch_size(memory, prefixes, self.device, free=free, shape=shape)

    def _step_of(self, batch: Batch, queue: TrialQueue) -> Callable[[Plan], None]:
        """The batch's step; on CUDA a recording of it, made for all trials that are left."""
        step = partial(self._step, batch)
        if self.device.type != "cuda":
            return step
        widest = batch.widest_plan(queue.unfinished.values(), self._layer_of, self._full_encode)
        split = len({*self.layout.devices}) > 1
        if split or widest.whole_layers or batch.recorder.whole_layers or not has_kernel():
            return step
        recorded = GraphedStep(step)
        return lambda plan: recorded(replace(widest, captures=plan.captures))

    def _step(self, batch: Batch, plan: Plan) -> None:
        logits = self._forward(batch, plan)
        state = batch.state
        token = sample(logits, state.temperature, state.top_p, state.uniform_now(), plan.kinds)
        batch.end_pass(plan, token, self._end_tokens)

    def _forward(self, batch: Batch, plan: Plan) -> Tensor:
        """One token of every row -> logits [B, V]."""
        now, ids, positions = batch.begin_pass(plan)
        with decoding(self.model, batch.cache), self._head.installed(), self._hooks.during(now):
            out = self.model(input_ids=ids, position_ids=positions, past_key_values=batch.cache, use_cache=True)
        return out.logits[:, -1].to(self.device)

    def _result(self, trial: Trial, found: dict[str, np.ndarray], recorder: Recorder) -> TrialResult:
        tokens = tuple(found["tokens"][: int(found["steps"])].tolist())
        rows, features, residuals = recorder.unpack(trial, tokens, found.get("features"), found.get("residuals"))
        return TrialResult(
            id=trial.id,
            tokens=tokens,
            finish="eos" if tokens[-1] in self.end_tokens else "length",
            edits_applied=check_edits(trial, int(found["applied"]), len(tokens)),
            f_before=_number(found["f"]),
            relative_delta=_number(found["relative_delta"]),
            rows=rows,
            features=features,
            residuals=residuals,
        )


def _number(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


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
