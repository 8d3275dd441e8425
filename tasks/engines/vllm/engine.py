"""The vLLM engine: trials in, checked results out.

vLLM batches, schedules and caches; a trial is one request that carries its instructions (`requests`). At most as many
requests are in flight as the key-value cache can hold to their ends, so none is ever preempted. Finished requests
are collected in packs: counts, activations and captures come from the workers with one wait for the device.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Cell, CellResult, Edit, EditNotApplied, Trial, TrialResult, expected_edits
from tasks.engines.vllm import requests
from tasks.engines.vllm.model_folder import ModelFolder
from tasks.engines.vllm.results import captured
from tasks.engines.vllm.state import Call, Outcome, save_dictionary, slot_count
from tasks.errors import BadInput
from tasks.sae.sae import SAE

_open: VllmEngine | None = None
"""vLLM keeps its worker's state in the process: one engine at a time."""


@dataclass(frozen=True, eq=False)
class _Finished:
    trial: Trial
    slot: int
    tokens: tuple[int, ...]
    cached: int
    """Tokens of the prompt whose keys and values came from the prefix cache."""


class VllmEngine:
    """See `tasks.engines.interface.Engine`. A context manager; `close` frees the device.

    model_folder: a model in transformers format on this machine.
    bank: the rows that edits and captures name; None when there are none.
    sae_of: layer -> SAE, needed for mode `reconstruct` and TopK gates only.
    batch_size: requests in flight at most. end_tokens: ids that end a trial; default the model's own.
    max_model_len: longest prompt with its generated tokens.
    enforce_eager: without torch.compile and CUDA graphs; on a GPU needed by mode `reconstruct` and TopK gates.
    capture: on a GPU with graphs, the only capture that calls may ask for; elsewhere each call has its own.
    cache_bytes: size of the key-value cache; default what batch_size and max_model_len need on a CPU, within a
    quarter of the free memory, and what `gpu_memory_utilization` leaves on a GPU.
    v2_runner: vLLM's second model runner (GPU only).

    Raises BadInput where vLLM is not installed, or the model is one that it cannot edit or hold.
    """

    def __init__(
        self,
        model_folder: Path | str,
        bank: Bank | None = None,
        sae_of: Callable[[int], SAE] | None = None,
        batch_size: int | None = None,
        end_tokens: Sequence[int] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        max_model_len: int | None = None,
        max_batched_tokens: int = 8192,
        enforce_eager: bool = False,
        capture: Capture | None = None,
        cache_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel: int = 1,
        v2_runner: bool = False,
    ):
        global _open
        if _open is not None:
            raise RuntimeError("another vLLM engine is open in this process; close it first")
        model = ModelFolder.read(Path(model_folder))
        internals = _internals(v2_runner)
        cuda = internals.on_cuda()
        self._internals, self._bank, self._sae_of = internals, bank, sae_of
        self._graphs = cuda and not enforce_eager
        self._capture = Capture() if capture is None else capture
        self.end_tokens = model.end_tokens if end_tokens is None else tuple(end_tokens)
        self.batch_size = batch_size or (512 if cuda else 64)
        self.max_model_len = max_model_len or min(model.max_positions, 4096)
        self._scratch = tempfile.TemporaryDirectory(prefix="tomograph-vllm-")
        self._dictionaries: set[int] = set()
        self._serial = 0
        self._state: Literal["idle", "running", "broken", "closed"] = "idle"
        bank_path, self._bank_digest = self._save_bank()
        if cache_bytes is None and not cuda:
            cache_bytes = model.cache_bytes(self.batch_size, self.max_model_len, dtype)
        arguments = {
            "model": str(model_folder),
            "dtype": dtype,
            "skip_tokenizer_init": True,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.batch_size,
            "max_num_batched_tokens": max(min(max_batched_tokens, self.batch_size * self.max_model_len), self.batch_size),
            "block_size": 16 if cuda else 32,
            "enable_prefix_caching": True,
            "enforce_eager": enforce_eager,
            "kv_cache_memory_bytes": cache_bytes,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel,
            "disable_log_stats": True,
            "hf_overrides": {"head_dtype": "float32"},  # a 16-bit head rounds logits to coarse steps
            "additional_config": {
                requests.KEY: {
                    "bank": bank_path,
                    "digest": self._bank_digest,
                    "capture": {
                        "rows": list(self._capture.rows),
                        "residual_layers": list(self._capture.residual_layers),
                        "positions": list(self._capture.positions),
                    },
                }
            },
        }
        try:
            self._engine = internals.start(arguments)
        except ValueError as error:
            raise BadInput(
                "engine", str(model_folder), f"vLLM refuses ({error})", "change what it names, or use the torch engine"
            ) from error
        self._room = internals.cache_room(self._engine)
        _open = self

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the workers and their memory. The engine can't be used again."""
        global _open
        if self._state != "closed":
            self._state = "closed"
            self._internals.stop(self._engine)
            del self._engine
            self._scratch.cleanup()
            _open = None

    def generate(self, trials: Iterable[Trial], capture: Capture | None = None) -> Iterator[TrialResult]:
        """Run trials; results come as they finish.

        Raises `EditNotApplied` when an edit did not fire exactly where its scope says, `OverflowError` when a
        captured activation does not fit float16, BadInput for what the engine cannot do as it was opened.
        """
        capture = Capture() if capture is None else capture
        if self._graphs and not capture.empty and capture != self._capture:
            raise BadInput(
                "capture",
                capture,
                "CUDA graphs hold the capture that the engine was opened with",
                "open the engine with this capture, or with enforce_eager=True",
            )
        call = Call(tuple(capture.rows), tuple(capture.residual_layers), capture.positions)
        with closing(self._run(trials, call)) as finished:
            for done, outcome, i in finished:
                trial = done.trial
                applied = self._checked(done, outcome, i)
                f, delta = _edit_found(trial, outcome, i)
                rows, features, residuals = captured(trial, done.tokens, outcome.rows, done.slot, capture)
                finish = "eos" if done.tokens[-1] in self.end_tokens else "length"
                yield TrialResult(trial.id, done.tokens, finish, applied, f, delta, rows, features, residuals)

    def first_token(
        self,
        cells: Iterable[Cell],
        groups: Sequence[Sequence[int]],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[CellResult]:
        """One pass over the last token per cell; the rest of its prompt is shared through the prefix cache."""
        trials = (Trial(cell.id, cell.prompt, seed=0, edit=cell.edit, max_new_tokens=1) for cell in cells)
        call = Call(groups=tuple(map(tuple, groups)), temperature=temperature, top_p=top_p)
        with closing(self._run(trials, call)) as finished:
            for done, outcome, i in finished:
                self._checked(done, outcome, i)
                yield CellResult(done.trial.id, outcome.masses[i], *_edit_found(done.trial, outcome, i))

    def _run(self, trials: Iterable[Trial], call: Call) -> Generator[tuple[_Finished, Outcome, int]]:
        """Each trial with the outcome that holds its entry, and the entry's index."""
        if self._state != "idle":
            raise RuntimeError(f"the engine is {self._state}; {_REMEDY[self._state]}")
        queue = deque(trials)
        self._check(queue)
        in_flight: dict[str, tuple[Trial, int]] = {}
        self._state = "running"
        try:
            self._rpc("tomograph_begin", call)
            yield from self._drive(queue, in_flight)
        except GeneratorExit:  # the caller wants no more, or could not use a result
            self._engine.abort_request(list(in_flight))
            self._state = "idle"
            raise
        except BaseException:
            self._state = "broken"
            raise
        self._state = "idle"

    def _drive(
        self, queue: deque[Trial], in_flight: dict[str, tuple[Trial, int]]
    ) -> Iterator[tuple[_Finished, Outcome, int]]:
        free = list(range(slot_count(self.batch_size)))
        room, done = self._room.blocks, []
        while queue or in_flight or done:
            while queue and free and len(in_flight) < self.batch_size and self._blocks(queue[0]) <= room:
                trial, slot = queue.popleft(), free.pop()
                room -= self._blocks(trial)
                in_flight[self._add(trial, slot)] = trial, slot
            for output in self._engine.step() if in_flight else ():
                trial, slot = in_flight.pop(output.request_id)
                room += self._blocks(trial)
                done.append(_Finished(trial, slot, tuple(output.outputs[0].token_ids), output.num_cached_tokens or 0))
            if len(done) >= max(1, self.batch_size // 4) or not in_flight:
                taken, done = done, []
                if taken:
                    slots = [one.slot for one in taken]
                    outcome = self._rpc("tomograph_collect", slots)
                    free += slots
                    yield from ((one, outcome, i) for i, one in enumerate(taken))

    def _add(self, trial: Trial, slot: int) -> str:
        self._serial += 1
        what = asdict(requests.Instructions.of(trial, slot, self._serial))
        salt = requests.cache_salt(trial.edit, len(trial.prompt), self._bank_digest)
        name = str(self._serial)
        self._engine.add_request(
            name, self._internals.request(trial.prompt, salt), self._internals.sampling(what, self.end_tokens)
        )
        return name

    def _blocks(self, trial: Trial) -> int:
        return self._room.blocks_for(len(trial.prompt) + trial.max_new_tokens)

    def _check(self, trials: Iterable[Trial]) -> None:
        """Refuse what cannot run before anything does; bring the dictionaries that are needed."""
        known: set[int] = set()
        for trial in trials:
            if trial.id in known:
                raise ValueError(f"trial id {trial.id} is given twice; ids must be unique within a call")
            known.add(trial.id)
            length = len(trial.prompt) + trial.max_new_tokens
            if length > self.max_model_len or self._blocks(trial) > self._room.blocks:
                raise BadInput(
                    "engine.max_model_len",
                    self.max_model_len,
                    f"trial {trial.id} may take {length} tokens",
                    "open the engine with a larger max_model_len or cache_bytes",
                )
            if trial.edit is not None:
                self._check_edit(trial.edit)

    def _check_edit(self, edit: Edit) -> None:
        rows = 0 if self._bank is None else len(self._bank)
        if not 0 <= edit.row < rows:
            raise IndexError(f"bank row {edit.row}: the engine's bank has {rows} rows")
        if edit.mode == "reconstruct" or bool(self._bank.full_encode[edit.row]):
            self._need_dictionary(int(self._bank.layer[edit.row]))

    def _need_dictionary(self, layer: int) -> None:
        if layer in self._dictionaries:
            return
        if self._graphs:
            raise BadInput(
                "engine.enforce_eager",
                False,
                "mode 'reconstruct' and TopK gates take whole dictionaries, which CUDA graphs do not hold",
                "open the engine with enforce_eager=True",
            )
        if self._sae_of is None:
            raise ValueError(f"layer {layer}: mode 'reconstruct' and TopK gates need the layer's SAE, none given")
        path = Path(self._scratch.name) / f"layer-{layer}.safetensors"
        save_dictionary(self._sae_of(layer), path)
        self._rpc("tomograph_add_dictionary", str(path))
        path.unlink()
        self._dictionaries.add(layer)

    def _checked(self, done: _Finished, outcome: Outcome, i: int) -> int:
        """Positions edited, those read from the prefix cache included, which must be what the trial's scope says."""
        trial, n = done.trial, len(done.tokens)
        expected = expected_edits(trial, n)
        first, stop = requests.edited_range(trial.edit, len(trial.prompt))
        # Keys and values from the prefix cache were edited by the request that stored them, which was checked too.
        from_cache = max(0, min(stop, done.cached) - first)
        # vLLM may run a request once more before it knows that it has ended; that token counts for nothing.
        read = int(outcome.read[i])
        beyond = max(0, min(stop, read) - max(first, len(trial.prompt) + n - 1))
        applied = int(outcome.applied[i]) + from_cache - beyond
        if applied != expected:
            raise EditNotApplied(
                f"trial {trial.id}: the edit of bank row {trial.edit and trial.edit.row} was applied at "
                f"{applied} positions, its scope asks for {expected}"
            )
        return applied

    def _save_bank(self) -> tuple[str | None, str]:
        if self._bank is None:
            return None, ""
        path = Path(self._scratch.name) / "bank.safetensors"
        save_file(self._bank.tensors(), path)
        return str(path), requests.file_digest(path)

    def _rpc(self, method: str, *arguments: object):
        """What the first worker answers; all workers hold the same."""
        return self._engine.collective_rpc(method, args=arguments)[0]


_REMEDY = {
    "running": "finish or close the results of the call before",
    "broken": "an exception ended a pass before; open another engine",
    "closed": "open another engine",
}


def _edit_found(trial: Trial, outcome: Outcome, i: int) -> tuple[float | None, float | None]:
    if trial.edit is None:
        return None, None
    return float(outcome.f[i]), float(outcome.relative_delta[i])


def _internals(v2_runner: bool):
    """The one module that needs vLLM, with the settings that it reads from the environment."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if v2_runner else "0"
    for name, value in {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)
    try:
        from tasks.engines.vllm import internals
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise BadInput(
            "engine", "vllm", "vLLM is not installed in this environment", "install it, or use the torch engine"
        ) from error
    return internals
