"""From a finished study's shards to the content of its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts.shard import Shard
from tasks.patching import tables
from tasks.patching.report import screened
from tasks.patching.report.cautions import cautions, relative_deltas
from tasks.patching.report.data import (
    Detectable,
    FamilyNumbers,
    FeatureId,
    KeyNumbers,
    LayerRow,
    Prompt,
    Rate,
    ReportData,
    SaeFact,
    Screened,
    Setup,
    WordRow,
)
from tasks.patching.report.effects import (
    agreement,
    effect_rows,
    feature_id,
    findings,
    measured,
    strongest,
    strongest_effects,
)
from tasks.patching.report.examples import example_sets
from tasks.patching.report.outcomes import baseline_rates, choice_cells, invalid_share
from tasks.patching.report.screened import candidate_points, dose_curves, exact_effects
from tasks.patching.report.sentences import headline, what_to_change
from tasks.patching.scenario import INVALID
from tasks.patching.spec import ReportParams
from tasks.patching.tables import CANDIDATES, CONTROLS, EFFECTS, FEATURES, SURVIVORS, VERDICT, WORDS, probability
from tasks.patching.tryout import Tryout
from tasks.report.settings import flat
from tasks.report.sources import sources, totals
from tasks.report.tables import read, rows

EFFECT_FEATURES = 200
DOSE_FEATURES = 6
EXAMPLE_SETS = 4
CANDIDATE_POINTS = 600


@dataclass(frozen=True)
class Study:
    """Readers of a study's finished shards."""

    study: Shard
    contrast: Shard
    survivors: Shard
    verdict: Shard
    words: Shard
    screen: Sequence[Shard] = ()
    trials: Sequence[Shard] = ()
    confirmation: Sequence[Shard] = ()
    activations: Sequence[Shard] = ()
    saes: Shard | None = None
    choices: Shard | None = None

    def stages(self) -> Iterator[tuple[str, Sequence[Shard]]]:
        """Stages in the order they ran, with their shards; stages that did not run are left out."""
        for name, shards in (
            ("prepare", (self.study,)),
            ("choices", (self.choices,) if self.choices else ()),
            ("train SAEs", (self.saes,) if self.saes else ()),
            ("activations", self.activations),
            ("contrast", (self.contrast,)),
            ("screen", self.screen),
            ("survivors", (self.survivors,)),
            ("trials", self.trials),
            ("confirmation", self.confirmation),
            ("verdict", (self.verdict,)),
            ("words", (self.words,)),
        ):
            if shards:
                yield name, shards


def collect(study: Study, params: ReportParams, seed: int) -> ReportData:
    """Everything the report shows; equal shards give equal data, whatever machine or day they come from."""
    choices = [*params.choices, INVALID]
    kept = rows(SURVIVORS.read(study.survivors))
    ids = {row["candidate"]: feature_id(row) for row in kept}
    known = measured(read([study.verdict], EFFECTS), read([study.verdict], CONTROLS))
    about = setup(study, params, seed)
    found = findings(read([study.verdict], VERDICT), known, about)
    judged = study.verdict.json("findings")
    screened_in_all = screen_result(study.survivors.json("screen"))
    detectable = judged["detectable"] and Detectable(**judged["detectable"])
    best = strongest(found)

    columns = ["candidate", "prompt", "arm", "dose", "value", *map(probability, choices)]
    screen = list(read(study.screen, tables.screen(params.choices), columns))
    cells = screened.cells(screen)
    exact = exact_effects(cells, choices)
    candidates = rows(CANDIDATES.read(study.contrast))
    by_effect = screened.by_effect(exact, candidates)
    shown_first = list(dict.fromkeys([*(f.id for f in best), *ids.values(), *by_effect]))

    outcomes = choice_cells(study.trials, params.prompts)
    effects = effect_rows(known, ids, found, exact, baseline_rates(outcomes, choices))
    compared = agreement(effects)
    effects = strongest_effects(effects, EFFECT_FEATURES)
    confirmation_ran = bool(study.confirmation)
    every_trial = [*study.trials, *study.confirmation]
    discovered = {f.id.candidate for f in found}
    layers = layer_rows(study, params.alpha, set(ids), discovered)
    numbers = KeyNumbers(
        layers=len(layers),
        features_searched=sum(layer.searched for layer in layers),
        candidates=sum(layer.candidates for layer in layers),
        screen_cells=len(screen),
        survivors=len(ids),
        **{name: family_numbers(family) for name, family in judged["families"].items()},
        trials_discovery=_count(study.trials, "trials"),
        trials_confirmation=_count(study.confirmation, "trials"),
        confirmation_ran=confirmation_ran,
        invalid_share=invalid_share(choice_cells(every_trial, params.prompts)),
    )
    return ReportData(
        title=params.title,
        question=params.question,
        headline=headline(found, numbers, screened_in_all, params.alpha),
        nearest=[row["label"] for row in judged["strongest"] if not row["discovery"]],
        advice=[] if numbers.tests else what_to_change(screened_in_all),
        strongest=best,
        findings=found,
        numbers=numbers,
        screened=screened_in_all,
        detectable=detectable,
        cautions=cautions(
            judged["alarms"],
            relative_deltas(study.trials),
            outcomes,
            effects,
            found,
            layers,
            compared,
            confirmation_ran,
            detectable,
            {ids[row["candidate"]]: row["effect"] for row in kept},
        ),
        effects=effects,
        agreement=compared,
        doses=dose_curves(
            cells, screened.baselines(screen, choices), shown_first[:DOSE_FEATURES], params.prompts, choices
        ),
        candidates=candidate_points(
            candidates,
            exact,
            exact_effects(cells, choices, "random"),
            set(ids),
            discovered,
            CANDIDATE_POINTS,
        ),
        layers=layers,
        outcomes=outcomes,
        words=word_rows(study.words, params.words_alpha, [id.candidate for id in shown_first]),
        examples=example_sets(
            study.trials,
            examples_to_show([(f.id, f.prompt) for f in found], list(ids.values()), params.prompts),
            params.low,
            params.high,
            params.examples,
        ),
        setup=about,
        sources=sources(study.stages()),
    )


def screen_result(screen: dict) -> Screened:
    """From the survivors' json `screen`."""
    largest = screen["largest"]
    about = {"candidates": screen["candidates"], "min_effect": screen["min_effect"]}
    if not largest or not largest["effect"]:
        return Screened(**about, id=None, effect=None, prompt=None, choice=None)
    where = {"prompt": largest["effect_prompt"], "choice": largest["effect_choice"]}
    return Screened(**about, id=feature_id(largest), effect=largest["effect"], **where)


def family_numbers(family: dict) -> FamilyNumbers:
    """From one of the families of the verdict's json `findings`."""
    return FamilyNumbers(tests=family["tests"], discoveries=family["discoveries"], confirmed=family["confirmed"] or 0)


def layer_rows(study: Study, alpha: float, survivors: set[int], discovered: set[int]) -> list[LayerRow]:
    """The search by layer: how many features passed each stage."""
    features = FEATURES.read(study.contrast, ["layer", "q"])
    significant = pc.fill_null(pc.less_equal(features["q"], alpha), False).cast(pa.int64())
    searched = features.append_column("significant", significant).group_by("layer")
    counted = rows(searched.aggregate([([], "count_all"), ("significant", "sum")]))
    candidates = rows(CANDIDATES.read(study.contrast, ["candidate", "layer"]))
    trained = rows(study.saes.table("quality")) if study.saes else []
    quality = {row["layer"]: row for row in trained}

    def among(layer: int, chosen: set[int] | None = None) -> int:
        return sum(r["layer"] == layer and (chosen is None or r["candidate"] in chosen) for r in candidates)

    return [
        LayerRow(
            layer=row["layer"],
            searched=row["count_all"],
            significant=row["significant_sum"],
            candidates=among(row["layer"]),
            survivors=among(row["layer"], survivors),
            discoveries=among(row["layer"], discovered),
            **{name: quality.get(row["layer"], {}).get(name) for name in ("variance_explained", "l0", "dead_share")},
        )
        for row in sorted(counted, key=lambda r: r["layer"])
    ]


def word_rows(words: Shard, alpha: float, order: Sequence[int]) -> list[WordRow]:
    """Words that passed, by feature (in the order given), contrast, and size of the effect."""
    rank = {candidate: i for i, candidate in enumerate(order)}
    passed = [r for r in read([words], WORDS) if r["q"] is not None and r["q"] <= alpha]
    passed.sort(
        key=lambda r: (
            rank.get(r["candidate"], len(rank)),
            r["candidate"],
            r["contrast_name"],
            -abs(r["effect"]),
            r["word"],
        )
    )
    return [
        WordRow(
            id=feature_id(r),
            contrast=r["contrast_name"],
            word=r["word"],
            direction=r["direction"],
            a=Rate(n=r["n_a"], k=r["k_a"]),
            b=Rate(n=r["n_b"], k=r["k_b"]),
            effect=r["effect"],
            p=r["p"],
            q=r["q"],
        )
        for r in passed
    ]


def examples_to_show(
    found: Sequence[tuple[FeatureId, str]], sampled: Sequence[FeatureId], prompts: Sequence[str]
) -> list[tuple[FeatureId, str]]:
    """Discovered (feature, prompt) pairs, strongest first; without any, the first sampled feature on each prompt."""
    pairs = list(dict.fromkeys(found)) or [(id, prompt) for id in sampled[:1] for prompt in prompts]
    return pairs[:EXAMPLE_SETS]


def setup(study: Study, params: ReportParams, seed: int) -> Setup:
    """What was run, from the prepared study and the parameters."""
    prepared = study.study.json("study")
    info, texts = prepared["model_info"], prepared["prompts"]
    fingerprints = prepared["sae_fingerprints"]
    tryouts = [Tryout.model_validate(one) for one in study.choices.json("tryouts")] if study.choices else []
    tried = {tryout.prompt: tryout.in_words() for tryout in tryouts}
    units = CANDIDATES.read(study.contrast, ["unit"])["unit"].unique().to_pylist()
    source = params.model
    name = source.source + (f"@{source.revision}" if source.revision else "")
    return Setup(
        model=f"{name}{f' with adapter {source.adapter}' if source.adapter else ''}, {source.dtype}",
        model_fingerprint=prepared["model_fingerprint"],
        model_type=info["model_type"],
        n_layers=info["n_layers"],
        d_model=info["d_model"],
        scenario=params.scenario,
        prompts=[
            Prompt(name=name, text=texts[name]["text"], tokens=len(texts[name]["tokens"]), tried=tried.get(name))
            for name in params.prompts
        ],
        choices=[*params.choices, INVALID],
        low=params.low,
        high=params.high,
        alpha=params.alpha,
        sae=params.saes,
        sae_convention=", ".join(units),
        saes=[
            SaeFact(layer=int(layer), fingerprint=fingerprint)
            for layer, fingerprint in sorted(fingerprints.items(), key=lambda item: int(item[0]))
        ],
        seed=seed,
        settings=flat(params.settings),
    )


def _count(shards: Sequence[Shard], name: str) -> int:
    return totals(shards).get(name, 0)
