"""Which sequences are read: the budget, the shares, what is held out, and how texts become tokens."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from tasks.errors import BadInput
from tasks.sae.reading import LENGTH, sequences
from tasks.sae.spec import SaeTrainParams
from tests.models.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def change(params: SaeTrainParams, **settings: object) -> SaeTrainParams:
    return params.model_copy(update={"settings": params.settings.model_copy(update=settings)})


def test_texts_and_prose_share_the_budget(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    many = params.model_copy(update={"texts": params.texts * 3})
    read = sequences(tokenizer, change(many, tokens=10_000, texts_share=0.1), seed=0)
    own = sum(len(s.tokens) for s in read if s.own)
    prose = sum(len(s.tokens) for s in read if not s.own)
    assert 900 < own <= 1_000
    assert 10_000 - LENGTH <= own + prose <= 10_000
    assert all(len(s.tokens) <= LENGTH for s in read)


def test_a_tenth_of_each_kind_is_held_out(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    read = sequences(tokenizer, params, seed=0)
    for of_kind in ([s for s in read if s.own], [s for s in read if not s.own]):
        assert sum(s.held_out for s in of_kind) == len(of_kind) // 10 > 0


def test_without_prose_the_texts_may_take_the_whole_budget(
    params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase
) -> None:
    read = sequences(tokenizer, change(params, library_prose=False), seed=0)
    assert len(read) == len(params.texts)
    assert all(s.own for s in read)


def test_prose_is_cut_without_loss(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    read = [s for s in sequences(tokenizer, params, seed=0) if not s.own]
    assert all(s.tokens[0] == tokenizer.bos_token_id for s in read)
    text = tokenizer.decode([token for s in read for token in s.tokens[1:]])
    assert text.startswith('The "assert" statement')
    assert "Assert statements are a convenient way to insert debugging assertions" in text


def test_texts_become_tokens_as_the_study_has_them(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = {"texts": ["Bet $10 or stop?"] * 10, "answer_prefix": " Choice:"}
    raw = change(params, library_prose=False).model_copy(update=texts)
    assert sequences(tokenizer, raw, seed=0)[0].tokens == tuple(tokenizer("Bet $10 or stop? Choice:")["input_ids"])

    chat = raw.model_copy(update={"chat": True, "system": "Be careful."})
    tokens = sequences(tokenizer, chat, seed=0)[0].tokens
    expected = "<s><|system|>Be careful.\n<|user|>Bet $10 or stop?\n<|assistant|> Choice:"
    assert tokenizer.decode(tokens) == expected
    assert tokens.count(tokenizer.bos_token_id) == 1


def test_long_texts_are_cut(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    long = change(params, library_prose=False).model_copy(update={"texts": ["word " * 2000]})
    read = sequences(tokenizer, long, seed=0)
    assert len(read) > 10
    assert {len(s.tokens) for s in read[:-1]} == {LENGTH}


def test_sequences_fit_a_model_of_few_positions(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    long = params.model_copy(update={"texts": ["word " * 2000]})
    read = sequences(tokenizer, long, seed=0, max_positions=100)
    assert {of_own: max(len(s.tokens) for s in read if s.own == of_own) for of_own in (True, False)} == {
        True: 100,
        False: 100,
    }


def test_too_many_texts_are_chosen_from_at_random(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    few = change(params, tokens=5_000, texts_share=0.05)
    chosen = [[s for s in sequences(tokenizer, few, seed) if s.own] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"tokens": 1000}, "too few"),
        ({"library_prose": False, "texts_share": 0.001, "tokens": 5}, "too few"),
    ],
)
def test_too_little_text(
    params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase, update: dict, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        sequences(tokenizer, change(params.model_copy(update={"texts": []}), **update), seed=0)


def test_prose_of_another_release(params: SaeTrainParams, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match="same release"):
        sequences(tokenizer, params.model_copy(update={"corpus_fingerprint": "of another one"}), seed=0)
