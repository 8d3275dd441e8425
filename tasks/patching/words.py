"""Which words a feature adds to the model's answers, and which it removes.

For every prompt p and contrast group g, responses of `{p}_with_{g}_patch` (a) are compared with those of
`{p}_baseline` (b): with two prompts, four contrasts. The unit is the response: a word counts once for a response
that holds it, however often, since the words of one response are not independent. Exact (Fisher) test of the two
shares, Newcombe interval, q-values over all words x features x contrasts.

No stop words are left out: "no", "not", "more" and "now" are what a decision is made of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tasks.patching.effects import Feature, edited_features
from tasks.patching.parser import answer_length
from tasks.patching.spec import WordsParams
from tasks.patching.tables import WORDS
from tasks.stats.fdr import benjamini_hochberg
from tasks.stats.intervals import newcombe
from tasks.stats.proportions import exact_test

_WORD = re.compile(r"\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|[^\W\d_]+(?:'[^\W\d_]+)*")


def words_of(text: str) -> set[str]:
    """Distinct words: letters with inner apostrophes, in lower case; numbers, with a dollar sign if there is one.

    "Don't bet $10!" holds don't, bet and $10; "$10" and "10" differ.
    """
    return set(_WORD.findall(text.replace("’", "'").lower()))


class _Documents:
    """Words of each response as numbers, ready to be counted by group of responses."""

    def __init__(self, texts: Sequence[str]):
        words = [words_of(text) for text in texts]
        self.vocabulary = sorted(set().union(*words)) if words else []
        number = {word: i for i, word in enumerate(self.vocabulary)}
        self._length = np.array([len(w) for w in words], dtype=np.int64)
        self._start = np.cumsum(self._length) - self._length
        self._words = np.array([number[word] for w in words for word in w], dtype=np.int64)

    def frequency(self, documents: np.ndarray) -> np.ndarray:
        """In how many of these documents each word of the vocabulary occurs."""
        of_each = [self._words[self._start[d] : self._start[d] + self._length[d]] for d in documents.tolist()]
        found = np.concatenate(of_each) if of_each else np.empty(0, dtype=np.int64)
        return np.bincount(found, minlength=len(self.vocabulary))


def word_effects(trials: pa.Table, params: WordsParams) -> pa.Table:
    """Table `WORDS`: a row per tested word, in order of feature, contrast and word.

    `trials`: columns prompt, arm, candidate, layer, feature, value_name and response. A word is tested in a
    contrast if at least `min_responses` of its responses (both conditions together, so blind to which is which)
    hold it.
    """
    texts = trials["response"].to_pylist()
    if params.settings.text == "answer":
        texts = [text[: answer_length(text, params.restart)] for text in texts]
    documents = _Documents(texts)
    cells = _cells(trials)
    parts: list[dict[str, np.ndarray]] = []
    features, names = edited_features(trials), []
    for prompt in params.prompts:
        baseline = cells.get((prompt, "baseline", None, None), np.empty(0, dtype=np.int64))
        in_baseline = documents.frequency(baseline)
        for group in (params.low, params.high):
            names.append(f"{prompt}_with_{group}_patch_vs_{prompt}_baseline")
            for i, feature in enumerate(features):
                patched = cells.get((prompt, "feature", feature.candidate, group), np.empty(0, dtype=np.int64))
                in_patched = documents.frequency(patched)
                tested = np.flatnonzero(in_patched + in_baseline >= params.settings.min_responses)
                if len(patched) and len(baseline):
                    parts.append(
                        {
                            "feature": np.full(len(tested), i),
                            "contrast": np.full(len(tested), len(names) - 1),
                            "word": tested,
                            "k_a": in_patched[tested],
                            "n_a": np.full(len(tested), len(patched)),
                            "k_b": in_baseline[tested],
                            "n_b": np.full(len(tested), len(baseline)),
                        }
                    )
    return _tested(parts, features, names, documents.vocabulary, params.settings.alpha)


def _cells(trials: pa.Table) -> dict[tuple, np.ndarray]:
    """Row numbers of each (prompt, arm, candidate, value_name)."""
    key = ["prompt", "arm", "candidate", "value_name"]
    numbered = trials.select(key).append_column("row", pa.array(np.arange(len(trials))))
    groups = numbered.group_by(key).aggregate([("row", "list")])
    rows = groups["row_list"].combine_chunks()
    keys = zip(*(groups[name].to_pylist() for name in key), strict=True)
    return {k: rows[i].values.to_numpy() for i, k in enumerate(keys)}


def _tested(
    parts: list[dict[str, np.ndarray]],
    features: Sequence[Feature],
    names: Sequence[str],
    vocabulary: Sequence[str],
    alpha: float,
) -> pa.Table:
    if not parts:
        return WORDS.arrow.empty_table()
    c = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((c["word"], c["contrast"], c["feature"]))
    c = {name: column[order] for name, column in c.items()}
    rate_a, rate_b = c["k_a"] / c["n_a"], c["k_b"] / c["n_b"]
    low, high = newcombe(c["k_a"], c["n_a"], c["k_b"], c["n_b"], alpha)
    p = exact_test(c["k_a"], c["n_a"], c["k_b"], c["n_b"])
    which = np.array(features, dtype=np.int64).reshape(-1, 3)[c["feature"]]
    columns = {name: which[:, i] for i, name in enumerate(Feature._fields)} | {
        "contrast_name": pa.array(names, pa.string()).take(pa.array(c["contrast"])),
        "word": pa.array(vocabulary, pa.string()).take(pa.array(c["word"])),
        **{name: c[name] for name in ("n_a", "k_a", "n_b", "k_b")},
        "rate_a": rate_a,
        "rate_b": rate_b,
        "effect": rate_a - rate_b,
        "ci_low": low,
        "ci_high": high,
        "p": p,
        "q": benjamini_hochberg(p).q,
        "direction": pa.array(["removes", None, "adds"]).take(pa.array(np.sign(rate_a - rate_b).astype(np.int64) + 1)),
    }
    return WORDS.from_columns(columns)
