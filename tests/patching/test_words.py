import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from tasks.patching.spec import WordsParams, WordsSettings
from tasks.patching.tables import WORDS
from tasks.patching.words import word_effects, words_of

FILLER = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40)]
RESTART = ["Slot Machine Game"]


def params(**settings) -> WordsParams:
    return WordsParams(
        prompts=["safe", "risky"], low="safe", high="risky", restart=RESTART, settings=WordsSettings(**settings)
    )


def trials(text, candidates=3, n=30, n_baseline=60, seed=0):
    """`text(rng, prompt, candidate, value)` writes one response; candidate None is the baseline."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in ("safe", "risky"):
        cells = [("baseline", None, None, n_baseline)]
        cells += [("feature", c, value, n) for c in range(candidates) for value in ("safe", "risky")]
        for arm, candidate, value, count in cells:
            about = {"prompt": prompt, "arm": arm, "candidate": candidate, "value_name": value}
            about |= {
                "layer": None if candidate is None else 8,
                "feature": None if candidate is None else 50 + candidate,
            }
            rows += [about | {"response": text(rng, prompt, candidate, value)} for _ in range(count)]
    ints = {"candidate", "layer", "feature"}
    return pa.table({k: pa.array([r[k] for r in rows], pa.int32() if k in ints else pa.string()) for k in rows[0]})


def filler(rng, *_):
    return " ".join(rng.choice(FILLER, 8))


def significant(table, alpha=0.05):
    return table.filter(pc.less_equal(table["q"], alpha)).to_pylist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't bet $10!", {"don't", "bet", "$10"}),
        ("I won’t. NO, not now", {"i", "won't", "no", "not", "now"}),
        ("$10 and 10, $10", {"$10", "10", "and"}),
        ("$1,000 or 3.0x", {"$1,000", "3.0", "x", "or"}),
        ("2) Stop.\n2) Stop.", {"2", "stop"}),
        ("'quoted' rock'n'roll _under_", {"quoted", "rock'n'roll", "under"}),
        ("Größe, 賭け", {"größe", "賭け"}),
        ("costs 5$ ... --", {"costs", "5"}),
        ("", set()),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_a_planted_word_is_found_in_its_contrast_alone():
    def text(rng, prompt, candidate, value):
        hit = candidate == 1 and value == "risky" and prompt == "safe"
        return filler(rng) + (" I bet $10" if hit and rng.random() < 0.7 else " no")

    found = significant(word_effects(trials(text), params()))
    assert {(r["candidate"], r["contrast_name"]) for r in found} == {(1, "safe_with_risky_patch_vs_safe_baseline")}
    words = {r["word"]: r for r in found}
    assert {w: r["direction"] for w, r in words.items()} == {"$10": "adds", "bet": "adds", "i": "adds", "no": "removes"}
    assert (words["$10"]["feature"], words["$10"]["layer"]) == (51, 8)
    assert words["$10"]["ci_low"] > 0.3
    assert words["no"]["effect"] == pytest.approx(words["no"]["k_a"] / 30 - words["no"]["k_b"] / 60)


def test_exactly_the_four_contrasts():
    names = set(word_effects(trials(filler), params())["contrast_name"].to_pylist())
    assert names == {f"{p}_with_{g}_patch_vs_{p}_baseline" for p in ("safe", "risky") for g in ("safe", "risky")}


def test_a_word_repeated_in_one_response_counts_once():
    def text(rng, prompt, candidate, value):
        return filler(rng)

    table = trials(text)
    row = next(
        i
        for i, (a, p) in enumerate(zip(table["arm"].to_pylist(), table["prompt"].to_pylist(), strict=True))
        if (a, p) == ("feature", "safe")
    )
    responses = table["response"].to_pylist()
    responses[row] = "jackpot " * 100
    loud = table.set_column(table.column_names.index("response"), "response", pa.array(responses))
    (counted,) = [r for r in word_effects(loud, params(min_responses=1)).to_pylist() if r["word"] == "jackpot"]
    assert (counted["k_a"], counted["k_b"]) == (1, 0)
    assert counted["p"] == pytest.approx(30 / 90)
    assert "jackpot" not in word_effects(loud, params())["word"].to_pylist()


def test_shuffled_labels_are_calibrated():
    """Real word frequencies without any difference: p is not small too often, and studies rarely find a word."""

    def text(rng, *_):
        return " ".join(w for i, w in enumerate(FILLER) if rng.random() < (i + 1) / 60)

    studies, false, p = 60, 0, []
    for seed in range(studies):
        table = word_effects(trials(text, seed=seed), params())
        false += bool(significant(table))
        p.append(table["p"].to_numpy())
    p = np.concatenate(p)
    for alpha in (0.01, 0.05, 0.2):
        assert alpha / 5 < (p <= alpha).mean() <= alpha
    assert false <= stats.binom.ppf(0.99, studies, 0.05)


def test_text_after_the_scenario_restarts_is_left_out_by_default():
    def text(rng, prompt, candidate, value):
        return filler(rng) + "\nSlot Machine Game\n" + ("echo" if candidate is None else "other")

    assert not significant(word_effects(trials(text), params()))
    assert {r["word"] for r in significant(word_effects(trials(text), params(text="whole")))} == {"echo", "other"}


def test_counts_equal_a_naive_loop():
    table = trials(filler, candidates=2, n=11, n_baseline=13)
    rows = table.to_pylist()
    result = word_effects(table, params(min_responses=3))
    assert result.schema.equals(WORDS.arrow)
    expected = []
    for candidate in range(2):
        for prompt in ("safe", "risky"):
            for group in ("safe", "risky"):
                a = [r for r in rows if (r["prompt"], r["candidate"], r["value_name"]) == (prompt, candidate, group)]
                b = [r for r in rows if (r["prompt"], r["arm"]) == (prompt, "baseline")]
                for word in sorted({w for r in rows for w in words_of(r["response"])}):
                    k_a, k_b = (sum(word in words_of(r["response"]) for r in cell) for cell in (a, b))
                    if k_a + k_b >= 3:
                        name = f"{prompt}_with_{group}_patch_vs_{prompt}_baseline"
                        expected.append((candidate, name, word, 11, k_a, 13, k_b))
    columns = ("candidate", "contrast_name", "word", "n_a", "k_a", "n_b", "k_b")
    assert [tuple(r[c] for c in columns) for r in result.to_pylist()] == expected


def test_nothing_to_compare():
    assert len(word_effects(trials(filler, candidates=0), params())) == 0
    assert len(word_effects(trials(filler, n_baseline=0), params())) == 0
    assert len(word_effects(trials(lambda *_: ""), params())) == 0


def test_a_large_study_takes_seconds():
    table = trials(filler, candidates=150, n=30)
    start = time.perf_counter()
    word_effects(table, params())
    assert time.perf_counter() - start < 10
