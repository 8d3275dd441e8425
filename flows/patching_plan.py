"""The shards of a patching study: how its work is cut, and the spec of each piece. Pure functions.

Cuts depend on the study alone, never on the machine, so that any machine finds the shards of any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.planning import cut, refs
from tasks.artifacts.manifest import Manifest
from tasks.patching import spec as kinds
from tasks.patching.group_prompts import contrast_prompts
from tasks.patching.scenario import Scenario
from tasks.patching.spec import PATCHED_ARMS, PLAIN_ARMS, Arm, Phase, StudySettings
from tasks.sae import spec as sae
from tasks.spec import InputRef, TaskSpec
from tasks.text.prose import library_fingerprint

PROMPTS_PER_SHARD = 512
CANDIDATES_PER_SCREEN_SHARD = 512

# Trials are cut into SHARDS_WANTED pieces as long as these are of a sensible size: a shard imports torch and loads the
# model, which takes two cores as long as a few hundred trials of a small model.
SHARDS_WANTED = 8
FEWEST_TRIALS_PER_SHARD = 4_096
MOST_TRIALS_PER_SHARD = 16_384

VALUES = 2  # low and high

Inputs = dict[str, InputRef | list[InputRef]]


@dataclass(frozen=True)
class Block:
    """Candidates ``start`` to ``stop``, and of each of their cells the trials ``trial_start`` to ``trial_stop``."""

    start: int
    stop: int
    trial_start: int
    trial_stop: int


def trial_shards(trials: int) -> int:
    """Pieces for so many trials."""
    fewest = math.ceil(trials / MOST_TRIALS_PER_SHARD)
    most = math.ceil(trials / FEWEST_TRIALS_PER_SHARD)
    return max(fewest, min(SHARDS_WANTED, most))


def trial_blocks(candidates: int, trials_per_cell: int, cells_per_candidate: int) -> list[Block]:
    """The trials of ``candidates`` in pieces: by candidates, and by trials where one candidate is too much."""
    pieces = trial_shards(candidates * trials_per_cell * cells_per_candidate)
    if pieces <= candidates:
        return [Block(start, stop, 0, trials_per_cell) for start, stop in cut(candidates, pieces)]
    per_candidate = math.ceil(pieces / candidates) if candidates else 0
    return [
        Block(candidate, candidate + 1, start, stop)
        for candidate in range(candidates)
        for start, stop in cut(trials_per_cell, per_candidate)
    ]


@dataclass(frozen=True)
class Plan:
    """Specs of every stage. ``prepared`` is what ``patching.prepare`` found out (its json ``study``).

    ``settings`` name their engine: `auto` is settled before a plan is made.
    """

    settings: StudySettings
    scenario: Scenario
    prepared: dict[str, Any]

    def choices(self) -> TaskSpec:
        """The scenario as it is, tried on the model."""
        s = self.settings
        params = kinds.ChoicesParams(
            **self._on_model(),
            prompts=self.scenario.prompts,
            choices=self.prepared["choices"],
            parser=self.scenario.parser,
            stop_strings=self.scenario.stop,
            max_new_tokens=s.trials.max_new_tokens,
            temperature=s.trials.temperature,
            top_p=s.trials.top_p,
            min_choice_mass=s.scenario.min_choice_mass,
        )
        return kinds.CHOICES.spec(params, seed=s.seed)

    def train(self) -> TaskSpec:
        """SAEs for all layers, trained on the library's prose and the scenario's own text."""
        s, prefix = self.settings, "" if self.scenario.frame.chat else self.scenario.frame.answer_prefix
        prompts = contrast_prompts(self.scenario.contrast, s.contrast.prompts_per_group, s.seed)
        texts = [prompt.text + prefix for prompt in (*self.scenario.prompts, *prompts)]
        [train] = sae.KINDS
        params = sae.SaeTrainParams(
            model=s.model,
            model_fingerprint=self.prepared["model_fingerprint"],
            layers=s.saes.layers,
            settings=s.saes.train,
            texts=texts,
            corpus_fingerprint=library_fingerprint(),
        )
        return train.spec(params, seed=s.seed)

    def activations(self) -> list[TaskSpec]:
        s = self.settings
        prompts = self.prepared["contrast_prompts"]
        common = self._on_model() | {
            "contrast": self.scenario.contrast,
            "prompts_per_group": s.contrast.prompts_per_group,
            "layers": s.saes.layers,
        }
        return [
            kinds.ACTIVATIONS.spec(kinds.ActivationsParams(**common, start=start, stop=stop), seed=s.seed)
            for start, stop in cut(prompts, math.ceil(prompts / PROMPTS_PER_SHARD))
        ]

    def contrast(self, activations: Sequence[Manifest], saes: Manifest | None) -> TaskSpec:
        params = kinds.ContrastParams(
            saes=self.settings.saes,
            sae_fingerprints=self.prepared["sae_fingerprints"],
            **self._groups(),
            settings=self.settings.contrast,
        )
        return kinds.CONTRAST.spec(params, _trained(saes) | {"activations": refs(activations)}, self.settings.seed)

    def screen(self, contrast: Manifest, saes: Manifest | None) -> list[TaskSpec]:
        candidates = contrast.counts["candidates"]
        common = self._on_model_with_saes() | {
            "prompts": self.scenario.prompts,
            "choices": self.prepared["choices"],
            "settings": self.settings.screen,
        }
        inputs = _trained(saes) | {"contrast": contrast.ref}
        return [
            kinds.SCREEN.spec(kinds.ScreenParams(**common, start=start, stop=stop), inputs, self.settings.seed)
            for start, stop in cut(candidates, math.ceil(candidates / CANDIDATES_PER_SCREEN_SHARD))
        ]

    def survivors(self, contrast: Manifest, screen: Sequence[Manifest]) -> TaskSpec:
        params = kinds.SurvivorsParams(
            prompts=self._prompt_names(), choices=self._choice_names(), settings=self.settings.selection
        )
        inputs: Inputs = {"contrast": contrast.ref, "screen": refs(screen)}
        return kinds.SURVIVORS.spec(params, inputs, self.settings.seed)

    def discovery(self, contrast: Manifest, survivors: Manifest, saes: Manifest | None) -> list[TaskSpec]:
        """Trials of the survivors, and of the conditions that no candidate enters."""
        trials = self.settings.trials
        chosen = survivors.counts["survivors"]
        inputs = _trained(saes) | {"contrast": contrast.ref, "candidates": survivors.ref}
        plain = self._trials("discovery", PLAIN_ARMS, Block(0, 0, 0, trials.baseline_trials), inputs)
        return [plain, *self._patched("discovery", PATCHED_ARMS, chosen, trials.trials_per_cell, inputs)]

    def confirmation(self, contrast: Manifest, verdict: Manifest, saes: Manifest | None) -> list[TaskSpec]:
        """Trials of the discoveries on held-out seeds; none when there is nothing to confirm.

        What is confirmed is the difference between the two values of an edit, so no control runs again.
        """
        per_cell = self.settings.confirm.trials_per_cell
        chosen = verdict.outputs["confirm"].rows or 0
        if not chosen or not self.settings.confirm.enabled:
            return []
        inputs = _trained(saes) | {"contrast": contrast.ref, "candidates": verdict.ref}
        return self._patched("confirmation", ("feature",), chosen, per_cell, inputs)

    def verdict(
        self, survivors: Manifest, trials: Sequence[Manifest], confirmation: Sequence[Manifest] = ()
    ) -> TaskSpec:
        params = kinds.VerdictParams(
            prompts=self._prompt_names(),
            choices=self._choice_names(),
            **self._groups(),
            mode=self.settings.trials.mode,
            temperature=self.settings.trials.temperature,
            max_confirmed_features=self.settings.confirm.max_features,
            settings=self.settings.verdict,
        )
        inputs: Inputs = {"survivors": survivors.ref, "trials": refs(trials)}
        if confirmation:
            inputs["confirmation"] = refs(confirmation)
        return kinds.VERDICT.spec(params, inputs, self.settings.seed)

    def words(self, trials: Sequence[Manifest]) -> TaskSpec:
        params = kinds.WordsParams(
            prompts=self._prompt_names(),
            **self._groups(),
            restart=self.scenario.parser.restart,
            settings=self.settings.words,
        )
        return kinds.WORDS.spec(params, {"trials": refs(trials)}, self.settings.seed)

    def report(self, inputs: Inputs) -> TaskSpec:
        s = self.settings
        params = kinds.ReportParams(
            question=self.scenario.description,
            model=s.model,
            saes=_in_words(s.saes),
            scenario=self.scenario.name,
            prompts=self._prompt_names(),
            choices=self._choice_names(),
            **self._groups(),
            alpha=s.verdict.alpha,
            words_alpha=s.words.alpha,
            settings=s.model_dump(mode="json"),
        )
        return kinds.REPORT.spec(params, inputs, s.seed)

    def _patched(
        self, phase: Phase, arms: Sequence[Arm], candidates: int, per_cell: int, inputs: Inputs
    ) -> list[TaskSpec]:
        blocks = trial_blocks(candidates, per_cell, len(self.scenario.prompts) * VALUES * len(arms))
        return [self._trials(phase, arms, block, inputs) for block in blocks]

    def _trials(self, phase: Phase, arms: Sequence[Arm], block: Block, inputs: Inputs) -> TaskSpec:
        params = kinds.TrialsParams(
            **self._on_model_with_saes(),
            engine=self.settings.trials.engine,
            phase=phase,
            prompts=self.scenario.prompts,
            parser=self.scenario.parser,
            stop_strings=self.scenario.stop,
            max_new_tokens=self.settings.trials.max_new_tokens,
            arms=list(arms),
            **vars(block),
        )
        return kinds.TRIALS.spec(params, inputs, self.settings.seed)

    def _on_model(self) -> dict[str, Any]:
        return {
            "model": self.settings.model,
            "model_fingerprint": self.prepared["model_fingerprint"],
            "frame": self.scenario.frame,
        }

    def _on_model_with_saes(self) -> dict[str, Any]:
        trials = self.settings.trials
        return {
            **self._on_model(),
            **self._groups(),
            "saes": self.settings.saes,
            "sae_fingerprints": self.prepared["sae_fingerprints"],
            "mode": trials.mode,
            "scope": trials.scope,
            "temperature": trials.temperature,
            "top_p": trials.top_p,
        }

    def _groups(self) -> dict[str, str]:
        return {"low": self.scenario.contrast.low.name, "high": self.scenario.contrast.high.name}

    def _prompt_names(self) -> list[str]:
        return [prompt.name for prompt in self.scenario.prompts]

    def _choice_names(self) -> list[str]:
        return [choice.name for choice in self.scenario.choices]


def identify(settings: StudySettings) -> TaskSpec:
    return kinds.IDENTIFY.spec(kinds.IdentifyParams(model=settings.model, saes=settings.saes))


def prepare(settings: StudySettings, scenario: Scenario, identity: Manifest) -> TaskSpec:
    params = kinds.PrepareParams(
        model=settings.model,
        saes=settings.saes,
        scenario=scenario,
        prompts_per_group=settings.contrast.prompts_per_group,
        max_new_tokens=settings.trials.max_new_tokens,
    )
    return kinds.PREPARE.spec(params, {"identity": identity.ref}, settings.seed)


def _trained(saes: Manifest | None) -> Inputs:
    return {"saes": saes.ref} if saes else {}


def _in_words(source: sae.SaeSource) -> str:
    if source.kind == "train":
        return f"trained in this study (BatchTopK, k = {source.train.k})"
    places = [source.location] if source.location else sorted(source.layer_locations.values())
    return f"{source.kind}: {', '.join(places)}"
