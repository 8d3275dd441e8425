"""What a model loses without some dimensions: measured, averaged, and as a task."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.models.fingerprint import fingerprint
from tasks.models.layout import Layout
from tasks.models.load import LoadedModel, load
from tasks.models.points import norm_points, watching
from tasks.models.spec import ModelRef
from tasks.outliers.ablation import Ablation, Measured
from tasks.outliers.conditions import Condition, Found, conditions, found_dims
from tasks.outliers.effects import effects
from tasks.outliers.spec import (
    ABLATION,
    PREPARE,
    AblationParams,
    AblationSettings,
    PrepareParams,
)
from tasks.outliers.tables import ABLATION as TABLE
from tasks.runner import run_shard
from tasks.text.prose import library_prose
from tasks.text.spec import TextSource
from tests.models.tiny import ARCHITECTURES, save_tiny_model, tiny_model, tiny_tokenizer
from tests.outliers.given import GIVEN

generator = torch.Generator().manual_seed(0)
SEQUENCES = [torch.randint(3, 128, (n,), generator=generator).tolist() for n in (20, 7, 1, 2, 33, 12)]
PREDICTED = sum(map(len, SEQUENCES)) - len(SEQUENCES)
DIMS = (3, 17, 40)


def tiny(architecture: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    model = tiny_model(architecture).to(dtype)
    return LoadedModel(model, tiny_tokenizer(), Layout.of(model), ModelRef())


@torch.no_grad()
def naive(
    model: nn.Module, sequences: Sequence[Sequence[int]], zeroed: Callable[[nn.Module], ExitStack]
) -> list[Measured]:
    """All logits of one sequence at a time, from the definitions."""
    results = []
    for sequence in sequences:
        with zeroed(model):
            p = model(torch.tensor([sequence]), use_cache=False).logits[0].double().softmax(-1)
        steps = list(zip(p[:-1], sequence[1:], strict=True))
        results.append(
            Measured(
                tokens=len(steps),
                nll=float(sum(-now[token].log() for now, token in steps)),
                top1_probability=float(sum(now.max() for now, _ in steps)),
                correct=sum(int(now.argmax()) == token for now, token in steps),
            )
        )
    return results


def nothing(model: nn.Module) -> ExitStack:
    return ExitStack()


def outputs_zeroed(*names: str) -> Callable[[nn.Module], ExitStack]:
    """What modules of these names in every block return has zeros at DIMS."""

    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for dim in DIMS:
            output[..., dim] = 0
        return output

    def install(model: nn.Module) -> ExitStack:
        hooks = ExitStack()
        for name, module in model.named_modules():
            if re.fullmatch(rf".*\.\d+\.({'|'.join(names)})", name):
                hooks.callback(module.register_forward_hook(hook).remove)
        return hooks

    return install


def same(found: list[Measured], expected: list[Measured], rel: float = 1e-5) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.correct for one in found] == [one.correct for one in expected]
    assert [one.nll for one in found] == pytest.approx([one.nll for one in expected], rel=rel)
    assert [one.top1_probability for one in found] == pytest.approx([one.top1_probability for one in expected], rel=rel)


class TestMeasure:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_the_intact_model_of_every_architecture(self, architecture: str) -> None:
        """Scales and soft caps of logits included."""
        loaded = tiny(architecture)
        same(Ablation(loaded, 4).measure(SEQUENCES, ()), naive(loaded.model, SEQUENCES, nothing))

    @pytest.mark.parametrize(
        ("architecture", "norms"),
        [
            ("llama", ("input_layernorm", "post_attention_layernorm")),
            ("mixtral", ("input_layernorm", "post_attention_layernorm")),
            ("gpt2", ("ln_1", "ln_2")),
            ("gptj", ("ln_1",)),
            ("opt", ("self_attn_layer_norm", "final_layer_norm")),
            ("gemma2", ("input_layernorm", "pre_feedforward_layernorm")),
            ("cohere", ("input_layernorm",)),
            ("bloom", ("input_layernorm", "post_attention_layernorm")),
        ],
    )
    def test_dimensions_at_zero(self, architecture: str, norms: tuple[str, ...]) -> None:
        loaded = tiny(architecture)
        found = Ablation(loaded, 4).measure(SEQUENCES, DIMS)
        same(found, naive(loaded.model, SEQUENCES, outputs_zeroed(*norms)))
        intact = naive(loaded.model, SEQUENCES, nothing)
        assert abs(found[0].nll - intact[0].nll) > 1e-3

    @pytest.mark.parametrize("batch_size", [1, 2, 6, 50])
    def test_batches_and_pieces_of_logits_change_nothing(self, batch_size: int) -> None:
        loaded = tiny("gemma2")
        ablation = Ablation(loaded, batch_size)
        ablation._rows = 5
        done: list[int] = []
        found = ablation.measure(SEQUENCES, DIMS, done.append)
        same(found, Ablation(loaded, 3).measure(SEQUENCES, DIMS))
        assert done == [min(n, 6) for n in range(batch_size, 6 + batch_size, batch_size)]

    def test_the_head_sees_the_positions_that_predict_a_few_at_a_time(self) -> None:
        loaded = tiny("llama")
        ablation = Ablation(loaded, 6)
        ablation._rows = 16
        shapes: list[tuple[int, ...]] = []
        hook = loaded.model.lm_head.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
        ablation.measure(SEQUENCES, ())
        hook.remove()
        assert {shape[2] for shape in shapes} == {128}
        assert max(shape[0] * shape[1] for shape in shapes) == 16
        assert sum(shape[0] * shape[1] for shape in shapes) == PREDICTED

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_logits_of_16_bit_models_are_float32(self, dtype: torch.dtype) -> None:
        """The blocks round as they do; the head, and all that follows, does not."""
        loaded = tiny("llama", dtype)
        found = Ablation(loaded, 1).measure(SEQUENCES, ())
        hidden = [loaded.layout.stack(torch.tensor([s])).last_hidden_state[0, :-1] for s in SEQUENCES]
        weight = loaded.model.lm_head.weight.double()
        for one, h, sequence in zip(found, hidden, SEQUENCES, strict=True):
            logits = h.double() @ weight.T
            nll = nn.functional.cross_entropy(logits, torch.tensor(sequence[1:], dtype=torch.int64), reduction="sum")
            assert one.nll == pytest.approx(float(nll), rel=1e-5)

    def test_the_batch_is_halved_when_memory_runs_out(self) -> None:
        loaded = tiny("llama")
        expected = Ablation(loaded, 6).measure(SEQUENCES, DIMS)
        seen: list[int] = []

        def run_out(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(len(kwargs["input_ids"]))
            if seen[-1] > 2:
                raise torch.OutOfMemoryError("no more")

        ablation = Ablation(loaded, 6)
        hook = loaded.layout.stack.register_forward_pre_hook(run_out, with_kwargs=True)
        same(ablation.measure(SEQUENCES, DIMS), expected)
        hook.remove()
        assert ablation.batch_size == 1
        assert [n for n in seen if n > 2] == [6, 3]

    def test_what_fails_by_itself_fails(self) -> None:
        loaded = tiny("llama")

        def run_out(module: nn.Module, args: tuple) -> None:
            raise torch.OutOfMemoryError("no more")

        ablation = Ablation(loaded, 6)
        loaded.layout.stack.register_forward_pre_hook(run_out)
        with pytest.raises(torch.OutOfMemoryError):
            ablation.measure(SEQUENCES, DIMS)

    def test_the_model_is_left_as_it_was(self) -> None:
        loaded = tiny("cohere", torch.bfloat16)
        ids = torch.tensor([SEQUENCES[0]])
        before = loaded.model(ids).logits
        ablation = Ablation(loaded, 6)
        ablation.measure(SEQUENCES, DIMS)
        assert torch.equal(loaded.model(ids).logits, before)
        hook = loaded.model.lm_head.register_forward_pre_hook(lambda *call: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ablation.measure(SEQUENCES, DIMS)
        hook.remove()
        assert torch.equal(loaded.model(ids).logits, before)
        assert not any("forward" in module.__dict__ for module in loaded.model.modules())

    def test_a_model_with_parts_on_disk(self, tmp_path: Path) -> None:
        folder = save_tiny_model(tmp_path / "model")
        whole = load(ModelRef(source=str(folder)))
        where = {name: "cpu" for name, _ in whole.model.named_modules() if name.count(".") == 2} | {
            "model.embed_tokens": "cpu",
            "model.rotary_emb": "cpu",
            "model.layers.1": "disk",
            "model.norm": "disk",
            "lm_head": "disk",
        }
        split = load(ModelRef(source=str(folder)), where)
        assert split.model.lm_head.weight.device.type == "meta"
        forwards = {name: module.__dict__.get("forward") for name, module in split.model.named_modules()}
        same(Ablation(split, 3).measure(SEQUENCES, DIMS), Ablation(whole, 3).measure(SEQUENCES, DIMS))
        assert {name: module.__dict__.get("forward") for name, module in split.model.named_modules()} == forwards


class TestConditions:
    def found(
        self, systematic: list[int], others: Sequence[int] = (), seed: int = 0, d_model: int = 64, **settings: int
    ) -> list[Condition]:
        found = Found(systematic, [*systematic, *others])
        return conditions(found, d_model, AblationSettings(**settings), seed)

    def test_all_of_them(self) -> None:
        plan = self.found([9, 4, 60, 2], largest=2, random_draws=3)
        assert [(c.name, c.draw, len(c.dims)) for c in plan] == [
            ("none", 0, 0),
            ("systematic", 0, 4),
            *(("random_systematic", draw, 4) for draw in range(3)),
            ("largest", 0, 2),
            *(("random_largest", draw, 2) for draw in range(3)),
        ]
        assert plan[1].dims == (2, 4, 9, 60)
        assert plan[5].dims == (4, 9)
        random = [c.dims for c in plan if c.name.startswith("random")]
        assert len(set(random)) == 6
        for dims in random:
            assert set(dims) <= set(range(64)) - {9, 4, 60, 2}
            assert list(dims) == sorted(set(dims))

    def test_draws_depend_on_the_seed_and_on_themselves_alone(self) -> None:
        plan = self.found([9, 4, 60], seed=5, random_draws=4)
        assert self.found([9, 4, 60], seed=5, random_draws=2) == plan[:4]
        assert self.found([60, 9, 4], seed=5, random_draws=4) == plan
        assert self.found([9, 4, 60], seed=6, random_draws=4)[2:] != plan[2:]

    def test_the_largest_are_no_condition_when_they_are_all(self) -> None:
        names = {c.name for c in self.found([9, 4], largest=2)}
        assert names == {"none", "systematic", "random_systematic"}

    def test_without_systematic_dimensions_the_largest_with_outliers(self) -> None:
        plan = self.found([], [8, 1, 30], largest=2, random_draws=2)
        assert [(c.name, c.draw) for c in plan] == [
            ("none", 0),
            ("largest", 0),
            ("random_largest", 0),
            ("random_largest", 1),
        ]
        assert plan[1].dims == (1, 8)
        assert not {1, 8} & {*plan[2].dims, *plan[3].dims}

    def test_without_outliers_there_is_nothing_to_compare(self) -> None:
        assert self.found([]) == [Condition("none", 0, ())]

    def test_more_systematic_dimensions_than_others(self) -> None:
        plan = self.found(list(range(60)), largest=3)
        [random] = [c for c in plan if c.name == "random_systematic"]
        assert random.dims == (60, 61, 62, 63)
        assert len([c for c in plan if c.name == "random_largest"]) == 5
        plan = self.found(list(range(64)), largest=3)
        assert [c.name for c in plan] == ["none", "systematic", "largest"]

    def test_which_are_systematic(self) -> None:
        rows = [
            ("norms", "all", 5, True, 7.0),
            ("norms", "all", 3, True, 9.0),
            ("norms", "all", 4, True, 9.0),
            ("norms", "all", 6, False, 99.0),
            ("norms", "without_first", 7, True, 8.0),
            ("residual", "all", 8, True, 8.0),
            ("norms", "all", 2, False, 0.0),
        ]
        rows = [(*row, int(row[-1] > 0)) for row in rows]
        names = ("site", "positions", "dim", "systematic", "max_magnitude", "occurrences")
        table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
        both = {"norms": {}, "residual": {}}
        assert found_dims(table, {"headline": "all", "sites": both}) == Found([3, 4, 5], [6, 3, 4, 5])
        assert found_dims(table, {"headline": "without_first", "sites": both}) == Found([7], [7])
        assert found_dims(table, {"headline": "all", "sites": {"residual": {}}}) == Found([8], [8])


def table_of(
    rows: dict[tuple[str, int], tuple[list[float], list[float]]], tokens: list[int], n_dims: int = 2
) -> pa.Table:
    """Table `ablation` from {(condition, draw): (nll, top-1 probability of each sequence)}."""
    return TABLE.from_rows(
        [
            dict(zip(TABLE.names, (name, draw, 0 if name == "none" else n_dims, i, n, nll, top1, 0), strict=True))
            for (name, draw), values in rows.items()
            for i, (n, nll, top1) in enumerate(zip(tokens, *values, strict=True))
        ],
    )


class TestEffects:
    def test_by_hand(self) -> None:
        """Two sequences of 10 and 30 tokens; the draws of the random condition average out."""
        rows = {
            ("none", 0): ([20.0, 60.0], [5.0, 11.0]),
            ("systematic", 0): ([40.0, 80.0], [2.0, 10.0]),
            ("random_systematic", 0): ([21.0, 61.0], [5.0, 10.0]),
            ("random_systematic", 1): ([23.0, 63.0], [5.0, 12.0]),
        }
        none, systematic, random = effects(table_of(rows, [10, 30]), seed=0).to_pylist()
        assert (none["condition"], none["n_dims"], none["draws"]) == ("none", 0, 1)
        assert none["perplexity"] == pytest.approx(np.exp(80 / 40))
        assert (none["perplexity_ratio"], none["top1_change"]) == (1.0, 0.0)
        assert none["perplexity_ratio_low"] is none["top1_change_high"] is None
        assert systematic["perplexity"] == pytest.approx(np.exp(120 / 40))
        assert systematic["perplexity_ratio"] == pytest.approx(np.e)
        assert systematic["top1_probability"] == pytest.approx(12 / 40)
        assert systematic["top1_change"] == pytest.approx(-4 / 40)
        # of two sequences, a resample holds one twice, the other twice, or both
        assert systematic["perplexity_ratio_low"] == pytest.approx(np.exp(20 / 30))
        assert systematic["perplexity_ratio_high"] == pytest.approx(np.exp(20 / 10))
        assert systematic["top1_change_low"] == pytest.approx(-3 / 10)
        assert systematic["top1_change_high"] == pytest.approx(-1 / 30)
        assert (random["draws"], random["n_dims"]) == (2, 2)
        assert random["perplexity"] == pytest.approx(np.exp(84 / 40))
        assert random["top1_change"] == pytest.approx(0)

    def test_intervals_are_those_of_a_naive_bootstrap(self) -> None:
        rng = np.random.default_rng(0)
        tokens = rng.integers(5, 60, 12)
        nll_0, top1_0 = tokens * rng.uniform(2, 4, 12), tokens * rng.uniform(0.2, 0.5, 12)
        nll, top1 = nll_0 + tokens * rng.uniform(0, 1, 12), top1_0 - tokens * rng.uniform(-0.02, 0.1, 12)
        rows = {("none", 0): (nll_0.tolist(), top1_0.tolist()), ("systematic", 0): (nll.tolist(), top1.tolist())}
        row = effects(table_of(rows, tokens.tolist()), seed=1).to_pylist()[1]
        ratios, changes = [], []
        for _ in range(20_000):
            i = rng.integers(0, 12, 12)
            ratios.append(np.exp(nll[i].sum() / tokens[i].sum()) / np.exp(nll_0[i].sum() / tokens[i].sum()))
            changes.append(top1[i].sum() / tokens[i].sum() - top1_0[i].sum() / tokens[i].sum())
        for name, drawn in (("perplexity_ratio", ratios), ("top1_change", changes)):
            low, high = np.quantile(drawn, [0.025, 0.975])
            width = high - low
            assert row[f"{name}_low"] == pytest.approx(low, abs=0.03 * width)
            assert row[f"{name}_high"] == pytest.approx(high, abs=0.03 * width)
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]

    def test_the_same_seed_gives_the_same_bits(self) -> None:
        rng = np.random.default_rng(0)
        rows = {
            (name, 0): (rng.uniform(5, 9, 8).tolist(), rng.uniform(1, 2, 8).tolist()) for name in ("none", "largest")
        }
        table = table_of(rows, [3] * 8)
        assert effects(table, seed=4) == effects(table, seed=4)
        assert effects(table, seed=4) != effects(table, seed=5)

    def test_the_order_of_rows_within_a_condition_does_not_matter(self) -> None:
        rng = np.random.default_rng(0)
        rows = {
            (name, n): ([*rng.uniform(5, 9, 8)], [*rng.uniform(1, 2, 8)])
            for name, n in (("none", 0), ("a", 0), ("a", 1))
        }
        table = table_of(rows, [3] * 8)
        shuffled = pa.concat_tables([table[:8].take(rng.permutation(8)), table[8:].take(rng.permutation(16))])
        assert effects(shuffled, seed=4) == effects(table, seed=4)

    @pytest.mark.parametrize("tokens", [[10], [10, 0]])
    def test_one_sequence_has_no_interval(self, tokens: list[int]) -> None:
        empty = [0.0] * (len(tokens) - 1)
        rows = {("none", 0): ([20.0, *empty], [5.0, *empty]), ("systematic", 0): ([30.0, *empty], [4.0, *empty])}
        row = effects(table_of(rows, tokens), seed=0).to_pylist()[1]
        assert row["perplexity_ratio"] == pytest.approx(np.e)
        assert row["perplexity_ratio_low"] is row["perplexity_ratio_high"] is row["top1_change_low"] is None

    def test_equal_sequences_have_an_interval_of_a_point(self) -> None:
        rows = {("none", 0): ([20.0] * 3, [5.0] * 3), ("systematic", 0): ([30.0] * 3, [4.0] * 3)}
        row = effects(table_of(rows, [10] * 3), seed=0).to_pylist()[1]
        assert row["perplexity_ratio_low"] == pytest.approx(np.e)
        assert row["perplexity_ratio_high"] == pytest.approx(np.e)

    @pytest.mark.filterwarnings("error")
    def test_what_is_not_finite_is_null(self) -> None:
        rows = {
            ("none", 0): ([20.0, 60.0], [5.0, 11.0]),
            ("systematic", 0): ([float("nan"), 60.0], [float("nan"), 11.0]),
            ("largest", 0): ([1e6, 1e6], [5.0, 11.0]),
        }
        none, systematic, largest = effects(table_of(rows, [10, 30]), seed=0).to_pylist()
        assert none["perplexity"] == pytest.approx(np.exp(2))
        assert {systematic[key] for key in systematic if key.startswith(("perplexity", "top1"))} == {None}
        assert largest["perplexity"] is largest["perplexity_ratio"] is largest["perplexity_ratio_high"] is None
        assert largest["top1_probability"] == pytest.approx(16 / 40)
        nothing = effects(table_of({("none", 0): ([0.0], [0.0])}, [0]), seed=0).to_pylist()
        assert nothing[0]["perplexity"] is None


SYSTEMATIC = [40, 3, 17]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


class TestTask:
    @pytest.fixture(autouse=True)
    def plugin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOMOGRAPH_PLUGINS", "tests.outliers.given")

    def spec(self, store: Store, folder: Path, systematic: list[int], **settings: int):
        ref = ModelRef(source=str(folder))
        text = TextSource(sequences=4, length=24, pack=False)
        prepared = run_shard(store, PREPARE.spec(PrepareParams(model=ref, text=text)))
        names = ("site", "positions", "dim", "systematic", "max_magnitude", "occurrences")
        rows = [("norms", "all", dim, True, 9.0 - n, 4) for n, dim in enumerate(systematic)]
        rows.append(("norms", "all", 50, False, 99.0, 1))
        summary = run_shard(
            store,
            GIVEN.spec(
                {
                    "tables": {"dimensions": [dict(zip(names, row, strict=True)) for row in rows]},
                    "jsons": {"summary": {"headline": "all", "sites": {"norms": {}}}},
                }
            ),
        )
        params = AblationParams(
            model=ref,
            model_fingerprint=fingerprint(ref),
            batch_size=2,
            settings=AblationSettings(**{"sequences": 3, "largest": 2, "random_draws": 2} | settings),
        )
        return ABLATION.spec(params, {"prepared": prepared.ref, "summary": summary.ref}, seed=7)

    def test_outputs(self, store: Store, folder: Path) -> None:
        spec = self.spec(store, folder, SYSTEMATIC)
        events: list[dict[str, Any]] = []
        manifest = run_shard(store, spec, report=events.append)
        shard = Shard(store, spec.path)
        plan = conditions(Found(SYSTEMATIC, SYSTEMATIC), 64, AblationSettings(largest=2, random_draws=2), 7)
        assert [(row["condition"], row["draw"], tuple(row["dims"])) for row in shard.table("dims").to_pylist()] == [
            (c.name, c.draw, c.dims) for c in plan
        ]
        loaded = load(ModelRef(source=str(folder)))
        sequences = [loaded.tokenizer(text)["input_ids"][:24] for text in library_prose()[:3]]
        ablation = Ablation(loaded, 3)
        rows = shard.table("ablation").to_pylist()
        assert [(row["condition"], row["draw"], row["sequence"]) for row in rows] == [
            (c.name, c.draw, n) for c in plan for n in range(3)
        ]
        for n, condition in enumerate(plan):
            mine = rows[3 * n : 3 * n + 3]
            found = [Measured(*(row[key] for key in ("tokens", "nll", "top1_probability", "correct"))) for row in mine]
            same(found, ablation.measure(sequences, condition.dims))
            assert {row["n_dims"] for row in mine} == {len(condition.dims)}
        assert shard.table("effects") == effects(shard.table("ablation"), 7)
        assert shard.counts == {"conditions": 7, "sequences": 3, "tokens": 7 * 3 * 23}
        assert manifest.run["notes"].keys() == {"batch_size", "spread"}
        progress = [event for event in events if event["event"] == "progress"]
        assert progress[-1]["done"] == progress[-1]["total"] == 21

    def test_nothing_systematic(self, store: Store, folder: Path) -> None:
        spec = self.spec(store, folder, [])
        run_shard(store, spec)
        shard = Shard(store, spec.path)
        assert shard.table("effects")["condition"].to_pylist() == ["none", "largest", "random_largest"]
        assert shard.table("dims")["dims"].to_pylist()[:2] == [[], [50]]

    def test_an_interrupted_run_goes_on(self, store: Store, folder: Path, tmp_path: Path, monkeypatch) -> None:
        spec = self.spec(store, folder, SYSTEMATIC)
        whole = run_shard(Store(tmp_path / "other"), self.spec(Store(tmp_path / "other"), folder, SYSTEMATIC))

        measure, calls = Ablation.measure, []

        def interrupted(*args: Any) -> list[Measured]:
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return measure(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Ablation, "measure", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_shard(store, spec)
        manifest = run_shard(store, spec)
        assert manifest.run["reused_chunks"] == 2
        assert manifest.digest == whole.digest

    def test_when_only_the_effects_are_missing_no_model_is_loaded(
        self, store: Store, folder: Path, monkeypatch
    ) -> None:
        spec = self.spec(store, folder, SYSTEMATIC)
        manifest = run_shard(store, spec)
        store.remove(f"{spec.path}/manifest.json")
        monkeypatch.setattr(
            "tasks.outliers.run_ablation.load", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        )
        assert run_shard(store, spec).digest == manifest.digest


def test_the_embedded_model_loses_most_without_its_largest_dimension() -> None:
    """SmolLM2: without one dimension of 576 it can say nothing, without another one it hardly notices."""
    loaded = load(ModelRef())
    text = " ".join(library_prose()[10:16])
    tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    sequences = [tokens[at : at + 64] for at in range(0, 256, 64)]
    largest = torch.zeros(loaded.layout.d_model)

    def see(i: int, x: torch.Tensor) -> None:
        torch.maximum(largest, x.abs().float().amax((0, 1)), out=largest)

    with watching(norm_points(loaded.model, loaded.layout), see), torch.no_grad():
        loaded.layout.stack(torch.tensor(sequences), use_cache=False)
    ablation = Ablation(loaded, 4)

    def perplexity(dims: Sequence[int]) -> float:
        measured = ablation.measure(sequences, dims)
        return float(np.exp(sum(one.nll for one in measured) / sum(one.tokens for one in measured)))

    intact = perplexity(())
    assert 2 < intact < 100
    harm = perplexity([int(largest.argmax())]) / intact - 1
    others = [perplexity([dim]) / intact - 1 for dim in (5, 250, 500)]
    assert harm > 10 * max(abs(other) for other in others)
