"""The vLLM engine: trials in, checked results out.

vLLM batches, schedules and caches; a trial is one request that carries its instructions (`requests`), and `driver`
feeds them in and brings back what they left. Here the results are checked and labelled.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Cell, CellResult, Edit, Trial, TrialResult
from tasks.engines.vllm import requests
from tasks.engines.vllm.dictionaries import save_dictionary
from tasks.engines.vllm.driver import Driver
from tasks.engines.vllm.model_folder import ModelFolder
from tasks.engines.vllm.results import captured, checked, edit_found
from tasks.engines.vllm.settings import BANK_PATH, Settings, load_internals
from tasks.engines.vllm.state import Call
from tasks.errors import BadInput
from tasks.sae.sae import SAE

_open: VllmEngine | None = None
"""vLLM keeps its worker's state in the process: one engine at a time."""


class VllmEngine:
    """See `tasks.engines.interface.Engine`. A context manager; `close` frees the device.

    model_folder: a model in transformers format on this machine.
    bank: the rows that edits and captures name; None when there are none.
    sae_of: layer -> SAE, needed for mode `reconstruct` and TopK gates only.
    batch_size: requests in flight at most. end_tokens: ids that end a trial; default the model's own.
    max_model_len: longest prompt with its generated tokens. max_batched_tokens: of one forward pass.
    enforce_eager: without torch.compile and CUDA graphs; on a GPU needed where whole dictionaries are.
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
        end_tokens: Iterable[int] | None = None,
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
        internals = load_internals(v2_runner)
        self._bank, self._sae_of = bank, sae_of
        self._capture = Capture() if capture is None else capture
        self._graphs = internals.on_cuda() and not enforce_eager
        self.end_tokens = model.end_tokens if end_tokens is None else tuple(end_tokens)
        if self._whole_layers(set(), self._capture):
            self._check_no_graphs()
        self._scratch = tempfile.TemporaryDirectory(prefix="tomograph-vllm-")
        self._dictionaries: set[int] = set()
        bank_path = self._save_bank()
        digest = None if bank_path is None else requests.file_digest(bank_path)
        os.environ[BANK_PATH] = str(bank_path or "")
        settings = Settings.of(
            model,
            internals.on_cuda(),
            batch_size,
            max_model_len,
            dtype=dtype,
            max_batched_tokens=max_batched_tokens,
            enforce_eager=enforce_eager,
            cache_bytes=cache_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel=tensor_parallel,
        )
        self.batch_size, self.max_model_len = settings.batch_size, settings.max_model_len
        try:
            vllm = internals.start(settings.arguments(digest, self._capture))
        except ValueError as error:
            raise BadInput(
                "engine", str(model_folder), f"vLLM refuses ({error})", "change what it names, or use the torch engine"
            ) from error
        self._driver = Driver(vllm, internals, digest or "")
        _open = self

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the workers and their memory. The engine can't be used again."""
        global _open
        if _open is self:
            self._driver.close()
            self._scratch.cleanup()
            _open = None

    def generate(self, trials: Iterable[Trial], capture: Capture | None = None) -> Iterator[TrialResult]:
        """Run trials; results come as they finish.

        Raises `EditNotApplied` when an edit did not fire exactly where its scope says, `OverflowError` when a
        captured activation does not fit float16, BadInput for what the engine cannot do as it was opened.
        """
        capture = Capture() if capture is None else capture
        trials = list(trials)
        self._check(trials, capture)
        with closing(self._driver.run(trials, Call(*_plain(capture)), self.batch_size, self.end_tokens)) as finished:
            for done in finished:
                applied = checked(done)
                f, delta = edit_found(done)
                rows, features, residuals = captured(done, capture)
                finish = "eos" if done.tokens[-1] in self.end_tokens else "length"
                yield TrialResult(done.trial.id, done.tokens, finish, applied, f, delta, rows, features, residuals)

    def first_token(
        self,
        cells: Iterable[Cell],
        groups: Sequence[Sequence[int]],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[CellResult]:
        """One pass per cell over what no cell before had in common with it: the prompt's end, most often."""
        trials = [Trial(cell.id, cell.prompt, seed=0, edit=cell.edit, max_new_tokens=1) for cell in cells]
        self._check(trials, Capture())
        call = Call(groups=tuple(map(tuple, groups)), temperature=temperature, top_p=top_p)
        with closing(self._driver.run(trials, call, self.batch_size, ())) as finished:
            for done in finished:
                checked(done)
                yield CellResult(done.trial.id, done.outcome.masses[done.entry], *edit_found(done))

    def _check(self, trials: Iterable[Trial], capture: Capture) -> None:
        """Refuse what cannot run before anything does; bring the dictionaries that are needed."""
        self._driver.check_idle()
        known: set[int] = set()
        for trial in trials:
            if trial.id in known:
                raise ValueError(f"trial id {trial.id} is given twice; ids must be unique within a call")
            known.add(trial.id)
            length = len(trial.prompt) + trial.max_new_tokens
            if length > self.max_model_len or not self._driver.holds(trial):
                raise BadInput(
                    "engine.max_model_len",
                    self.max_model_len,
                    f"trial {trial.id} may take {length} tokens",
                    "open the engine with a larger max_model_len or cache_bytes",
                )
        if self._graphs and not capture.empty and _plain(capture) != _plain(self._capture):
            raise BadInput(
                "capture",
                capture,
                "CUDA graphs hold the capture that the engine was opened with",
                "open the engine with this capture, or with enforce_eager=True",
            )
        for layer in self._whole_layers({trial.edit for trial in trials if trial.edit}, capture):
            self._bring_dictionary(layer)

    def _whole_layers(self, edits: set[Edit], capture: Capture) -> list[int]:
        """Layers whose whole dictionary is needed."""
        size = 0 if self._bank is None else len(self._bank)
        for row in (*(edit.row for edit in edits), *capture.rows):
            if not 0 <= row < size:
                raise IndexError(f"bank row {row}: the engine's bank has {size} rows")
        if self._bank is None:
            return []
        full, layer = self._bank.full_encode.tolist(), self._bank.layer.tolist()
        rows = {edit.row for edit in edits if edit.mode == "reconstruct" or full[edit.row]}
        return sorted({layer[row] for row in (*rows, *(row for row in capture.rows if full[row]))})

    def _bring_dictionary(self, layer: int) -> None:
        if layer in self._dictionaries:
            return
        self._check_no_graphs()
        if self._sae_of is None:
            raise ValueError(f"layer {layer}: mode 'reconstruct' and TopK gates need the layer's SAE, none given")
        path = Path(self._scratch.name) / f"layer-{layer}.safetensors"
        save_dictionary(self._sae_of(layer), path)
        self._driver.call_workers("tomograph_add_dictionary", str(path))
        path.unlink()
        self._dictionaries.add(layer)

    def _check_no_graphs(self) -> None:
        if self._graphs:
            raise BadInput(
                "engine.enforce_eager",
                False,
                "mode 'reconstruct' and TopK gates take whole dictionaries, which CUDA graphs do not hold",
                "open the engine with enforce_eager=True",
            )

    def _save_bank(self) -> Path | None:
        if self._bank is None:
            return None
        path = Path(self._scratch.name) / "bank.safetensors"
        save_file({name: tensor.cpu() for name, tensor in self._bank.tensors().items()}, path)
        return path


def _plain(capture: Capture) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    return tuple(capture.rows), tuple(capture.residual_layers), tuple(capture.positions)
