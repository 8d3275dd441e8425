"""The same trials by this project's engines and by its peers, each in an environment and a process of its own.

Every trial sets another SAE feature, in one of four layers, to another value, at the last token of the prompt and at
every generated one; greedy, so that the tokens can be compared. `peers/job.py` says what is asked and what is timed,
`peers/*.py` how each does it. The torch engine runs before, between and after its peers, and each is compared with
the runs right before and after its own, so that a machine that slows down slows both.

Environments are made on request only: `python -m tests.benchmarks peers`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
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
from tests.benchmarks.workload import random_sae, row, text_prompt

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

VLLM_PYTHON = Path(".venv-vllm/bin/python")
BY_HAND = "by_hand"
PEERS = {
    "nnsight": "nnsight",
    "transformer_lens": "TransformerLens",
    "vllm_lens": "vllm-lens",
    BY_HAND: "transformers with hooks, written by hand",
}


def prepare() -> None:
    """Make the peers' environments; called when this benchmark is asked for by its name."""
    environments.make_all()


def run(trials: int = TRIALS, new_tokens: int = NEW_TOKENS, rounds: int = ROUNDS, dtype: str = "float32") -> list[dict]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unedited = write_job(folder, trials, new_tokens, rounds, dtype)
        return _compare(folder, unedited)


def _compare(folder: Path, unedited: list[int]) -> list[dict]:
    ours = [_ours(folder)]
    tokens = ours[0]["tokens"]
    changed = mean(row != unedited for row in tokens)
    rows = [row("share of trials whose tokens the edit changes", changed, "share", at_least=0.5)]
    for name, title in {"vllm_engine": "vLLM engine", **PEERS}.items():
        try:
            found = _measure(name, _python_of(name), folder)
        except Unavailable as why:
            rows.append(row(_against(name, title), None, "x", _target(name), note=f"not measured: {why}"))
            continue
        ours.append(_ours(folder))
        our_seconds = mean(median(run["seconds"]) for run in ours[-2:])
        rows += _rows(name, title, found, our_seconds, tokens)
    speed = len(tokens) / median(median(run["seconds"]) for run in ours)
    rows.insert(0, row("torch engine, trials per second", speed, "1/s"))
    return [{**r, "name": f"peers: {r['name']}"} for r in rows]


def _rows(name: str, title: str, found: dict, our_seconds: float, tokens: list[list[int]]) -> list[dict]:
    """The fastest way against the target, the other ways for information, and whether the tokens agree."""
    ways = sorted(found["ways"].items(), key=lambda item: median(item[1]["seconds"]))
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    rows = []
    for way, of_way in ways:
        ratio = median(of_way["seconds"]) / our_seconds
        target = _target(name) if of_way is ways[0][1] else None
        rows.append(row(_against(name, title), ratio, "x", target, note=f"{way}; {versions}"))
        agree = mean(a == b for a, b in zip(of_way["tokens"], tokens, strict=True))
        rows.append(row(f"{title}: trials with the torch engine's tokens", agree, "share", AGREE, note=way))
    return rows


def _against(name: str, title: str) -> str:
    return f"torch engine against {title}"


def _target(name: str) -> float | None:
    return TIMES if name in PEERS else None


def _ours(folder: Path) -> dict:
    return _measure("torch_engine", sys.executable, folder)["ways"]["torch engine"]


def _python_of(name: str) -> str:
    if name == BY_HAND:
        return sys.executable
    if name == "vllm_engine":
        if not VLLM_PYTHON.exists():
            raise Unavailable(f"{VLLM_PYTHON} is not there; run `make .venv-vllm/.ready`")
        return str(VLLM_PYTHON)
    return environments.python_of(name)


def _measure(name: str, python: str, folder: Path) -> dict[str, Any]:
    """What `peers/NAME.py` wrote. Raises Unavailable when it failed, with the last line of its error."""
    out = folder / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [python, "-m", f"tests.benchmarks.peers.{name}", str(folder), str(out)]
    print(f"  {name}", flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS)
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
