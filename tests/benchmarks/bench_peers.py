"""The same trials by this project's engines and by its peers, each in an environment and a process of its own.

Every trial sets another SAE feature, in one of four layers, to another value, at the last token of the prompt and at
every generated one; greedy, so that the tokens can be compared. `peers/job.py` says what is asked and what is timed,
`peers/*.py` how each does it. The engines run before, between and after their peers, and each peer is compared with
the runs right before and after its own, so that a machine that slows down slows both. All have the same threads.

Environments are made on request only: `python -m tests.benchmarks peers`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from tasks.engines.bank import Bank
from tasks.models.load import load, local_folder
from tasks.models.spec import ModelRef
from tests.benchmarks.peers import environments
from tests.benchmarks.peers.environments import Unavailable
from tests.benchmarks.peers.job import Edits, Job
from tests.benchmarks.rows import row
from tests.benchmarks.workload import VLLM_PYTHON, random_sae, same_threads, text_prompt

TRIALS = 32
PROMPT_TOKENS = 150
NEW_TOKENS = 30
ROUNDS = 3
LAYERS = (8, 14, 20, 26)
D_SAE = 4608
RELATIVE_VALUES = (0.4, 0.8)
"""Smallest and largest value of an edit, in norms of the residual stream."""

TIMES = 3.0
"""How far ahead of each peer."""
AGREE = 0.9
"""Share of trials with the same tokens, from which on it is the same work."""
MAX_SECONDS = 1800

BY_HAND = "by_hand"
PEERS = {
    "nnsight": "nnsight",
    "transformer_lens": "TransformerLens",
    "vllm_lens": "vllm-lens",
    BY_HAND: "transformers with hooks, written by hand",
}
"""Module of a peer -> its name in the table."""


def prepare() -> None:
    """Make the peers' environments; called when this benchmark is asked for by its name."""
    environments.make_all()


def run(trials: int = TRIALS, new_tokens: int = NEW_TOKENS, rounds: int = ROUNDS, dtype: str = "float32") -> list[dict]:
    """float32, where two right programs give the same tokens: what is timed is what is compared."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unedited = write_job(folder, trials, new_tokens, rounds, dtype)
        return [{**r, "name": f"peers: {r['name']}"} for r in _compare(folder, unedited)]


def _compare(folder: Path, unedited: list[int]) -> list[dict]:
    turns, rows = [_engines(folder)], []
    reference = turns[0]["torch engine"]["tokens"]
    for name, title in PEERS.items():
        try:
            found = _measure(name, sys.executable if name == BY_HAND else environments.python_of(name), folder)
        except Unavailable as why:
            rows.append(row(f"faster engine against {title}", None, "x", _target(name), note=f"not measured: {why}"))
            continue
        turns.append(_engines(folder))
        rows += _against(name, title, found, turns[-2:], reference)
    changed = mean(tokens != unedited for tokens in reference)
    return [
        *_our_rows(turns, reference),
        row("share of trials whose tokens the edit changes", changed, "share", at_least=0.5),
        *rows,
    ]


def _engines(folder: Path) -> dict[str, dict]:
    """Both engines in turn; without vLLM, the torch engine alone."""
    found = _measure("torch_engine", sys.executable, folder)["ways"]
    if VLLM_PYTHON.exists():
        with suppress(Unavailable):
            found |= _measure("vllm_engine", str(VLLM_PYTHON), folder)["ways"]
    return found


def _our_rows(turns: list[dict[str, dict]], reference: list[list[int]]) -> list[dict]:
    """Trials per second of each engine over all turns, and whether both give the same tokens."""
    rows = []
    for engine in ("torch engine", "vLLM engine"):
        measured = [turn[engine] for turn in turns if engine in turn]
        speed = len(reference) / median(median(m["seconds"]) for m in measured) if measured else None
        why = "" if measured else f"not measured: {VLLM_PYTHON} is not there or failed; run `make .venv-vllm/.ready`"
        rows.append(row(f"{engine}, trials per second", speed, "1/s", note=why))
    if measured:
        rows.append(_agreement("vLLM engine", measured[0]["tokens"], reference))
    return rows


def _against(
    name: str, title: str, found: dict, turns: list[dict[str, dict]], reference: list[list[int]]
) -> list[dict]:
    """Each engine against the peer's fastest way, the faster engine against the target; whether the tokens agree."""
    ways = sorted(found["ways"].items(), key=lambda item: median(item[1]["seconds"]))
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    fastest, of_fastest = ways[0]
    both = set(turns[0]) & set(turns[1])
    ours = {engine: mean(median(turn[engine]["seconds"]) for turn in turns) for engine in sorted(both)}
    ratios = {engine: median(of_fastest["seconds"]) / seconds for engine, seconds in ours.items()}
    best = max(ratios, key=ratios.__getitem__)
    rows = [
        row(f"faster engine against {title}", ratios[best], "x", _target(name), note=f"{best}; {fastest}; {versions}"),
        *(row(f"{engine} against {title}", ratio, "x", note=fastest) for engine, ratio in ratios.items()),
    ]
    for way, of_way in ways[1:]:
        ratio = median(of_way["seconds"]) / ours[best]
        rows.append(row(f"faster engine against {title}, {way}", ratio, "x", note=best))
    return rows + [_agreement(f"{title}, {way}", of_way["tokens"], reference) for way, of_way in ways]


def _agreement(name: str, tokens: list[list[int]], reference: list[list[int]]) -> dict:
    same = mean(a == b for a, b in zip(tokens, reference, strict=True))
    return row(f"{name}: trials with the torch engine's tokens", same, "share", AGREE)


def _target(name: str) -> float | None:
    """None for what was written by hand: it is a yardstick, not a package that one could use instead."""
    return None if name == BY_HAND else TIMES


def _measure(name: str, python: str, folder: Path) -> dict[str, Any]:
    """What `peers/NAME.py` wrote. Raises Unavailable when it failed, with the last line of its error."""
    out = folder / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [python, "-m", f"tests.benchmarks.peers.{name}", str(folder), str(out)]
    print(f"  {name}", flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, env=same_threads())
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"took more than {MAX_SECONDS} s") from error
    if done.returncode or not out.exists():
        raise Unavailable(f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}")
    return json.loads(out.read_text())


def write_job(folder: Path, trials: int, new_tokens: int, rounds: int, dtype: str) -> list[int]:
    """Write the job. Returns what the model generates from the first prompt without an edit."""
    ref = ModelRef(dtype=dtype)
    loaded, model_folder = load(ref), local_folder(ref)
    prompts = [list(text_prompt(loaded.tokenizer, PROMPT_TOKENS, number)) for number in range(rounds + 1)]
    saes = {layer: random_sae(layer, loaded.layout.d_model, D_SAE) for layer in LAYERS}
    bank = Bank.build(saes.__getitem__, [(LAYERS[i % len(LAYERS)], 11 * i) for i in range(trials)])
    values = torch.linspace(*RELATIVE_VALUES, trials) * _norms(loaded.model, prompts[0])[bank.layer]
    edits = Edits(bank.layer, values, bank.u, bank.b, bank.theta, bank.w)
    Job(str(model_folder), dtype, prompts, new_tokens, edits).write(folder)
    ids = torch.tensor(prompts[:1])
    mask, length = torch.ones_like(ids), {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    return loaded.model.generate(ids, attention_mask=mask, do_sample=False, **length)[0, PROMPT_TOKENS:].tolist()


@torch.inference_mode()
def _norms(model: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    """[n_layers] float32: norm of the residual stream at the last token, after each block."""
    states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[1:]
    return torch.stack([h[0, -1].float().norm() for h in states])


if __name__ == "__main__":
    for result in run():
        print(result)
