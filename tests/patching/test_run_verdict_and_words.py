"""The tasks `patching.verdict` and `patching.words`, run as shards on shards of simulated trials."""

import pytest

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.patching.spec import VERDICT, WORDS, WordsParams, WordsSettings
from tasks.runner import run_shard
from tasks.spec import InputRef
from tests.patching.simulated import HIGH, LOW, PROMPTS, params
from tests.patching.simulated_task import SURVIVORS, TRIALS


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", "tests.patching.simulated_task")


def finished(store, spec):
    return InputRef(shard=spec.path, digest=run_shard(store, spec).digest)


@pytest.fixture
def discovery(store):
    return finished(store, TRIALS.spec({"phase": "discovery", "planted": 1}, seed=3))


@pytest.fixture
def confirmation(store):
    return finished(store, TRIALS.spec({"phase": "confirmation", "planted": 1}, seed=3))


@pytest.fixture
def survivors(store):
    return finished(store, SURVIVORS.spec({}))


def test_first_the_discoveries_then_their_confirmation(store, survivors, discovery, confirmation):
    first = VERDICT.spec(params(), {"survivors": survivors, "trials": [discovery]})
    manifest = run_shard(store, first)
    shard = Shard(store, first.path)
    assert manifest.counts["features"] == 1
    assert (manifest.counts["primary_tests"], manifest.counts["secondary_tests"]) == (3, 3 * 2 * 3 * 3 - 3)
    assert "confirmed" not in manifest.counts
    assert shard.table("confirm")["candidate"].to_pylist() == [1]
    assert {f["confirmed"] for f in shard.json("findings")["families"].values()} == {None}

    second = VERDICT.spec(params(), {"survivors": survivors, "trials": [discovery], "confirmation": [confirmation]})
    manifest = run_shard(store, second)
    again = Shard(store, second.path)
    assert second.hash != first.hash
    verdict = again.table("verdict").to_pylist()
    assert manifest.counts["discoveries"] == len(verdict)
    assert manifest.counts["confirmed"] == sum(row["confirmed"] for row in verdict)
    stops = {row["prompt"]: (row["family"], row["confirmed"]) for row in verdict if row["choice"] == "stop"}
    assert stops == {"safe": ("secondary", True), "risky": ("primary", True)}
    assert len(again.table("controls")) == 3 * 2 * 3
    assert again.table("effects").slice(0, len(shard.table("effects"))).equals(shard.table("effects"))


def test_the_same_trials_give_the_same_bytes(store, survivors, discovery, tmp_path):
    other = Store(tmp_path / "other")
    again = finished(other, TRIALS.spec({"phase": "discovery", "planted": 1}, seed=3))
    words = WordsParams(prompts=list(PROMPTS), low=LOW, high=HIGH, restart=[], settings=WordsSettings())
    finished(other, SURVIVORS.spec({}))
    for kind, p, more in ((VERDICT, params(), {"survivors": survivors}), (WORDS, words, {})):
        one, two = (
            run_shard(s, kind.spec(p, more | {"trials": [ref]})) for s, ref in ((store, discovery), (other, again))
        )
        assert one.digest == two.digest


def test_words(store, discovery):
    words = WordsParams(prompts=list(PROMPTS), low=LOW, high=HIGH, restart=[], settings=WordsSettings())
    spec = WORDS.spec(words, {"trials": [discovery]})
    manifest = run_shard(store, spec)
    table = Shard(store, spec.path).table("words")
    found = {(r["candidate"], r["word"], r["direction"]) for r in table.to_pylist() if r["q"] <= 0.05}
    assert {(1, "enough", "adds"), (1, "stop", "adds"), (1, "bet", "removes")} <= found
    assert {candidate for candidate, _, _ in found} == {1}
    assert manifest.counts["tests"] == len(table)
    assert manifest.counts["words"] >= len(found)
