import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.errors import BadInput
from tasks.models.load import load_tokenizer
from tasks.models.spec import ModelRef
from tasks.patching.first_tokens import first_tokens
from tasks.patching.load import builtin_scenarios, load_scenario
from tasks.text.spec import Frame
from tests.models.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def scenario():
    return load_scenario("slot_machine")


def with_first_tokens(scenario, **texts):
    choices = [c.model_copy(update={"first_tokens": texts.get(c.name, c.first_tokens)}) for c in scenario.choices]
    return scenario.model_copy(update={"choices": choices})


@pytest.mark.parametrize("name", builtin_scenarios())
def test_builtin_scenarios_fit_the_embedded_model(name):
    tokenizer = load_tokenizer(ModelRef())
    found = first_tokens(load_scenario(name), tokenizer)
    texts = {choice: {tokenizer.decode([i]) for i in ids} for choice, ids in found.ids.items()}
    assert texts == {"bet": {"1", "Bet", " Bet"}, "stop": {"2", "Stop", " Stop"}}
    assert {d.text for d in found.dropped} == {" 1", " 2"}


def test_texts_of_several_tokens_are_dropped_and_named(scenario, tokenizer):
    found = first_tokens(with_first_tokens(scenario, stop=["2", "Stop right now"]), tokenizer)
    assert [tokenizer.decode([i]) for i in found.ids["stop"]] == ["2"]
    assert ("stop", "Stop right now") in {(d.choice, d.text) for d in found.dropped}


def test_the_parser_must_agree(scenario, tokenizer):
    with pytest.raises(BadInput, match=r"parser reads 'stop' \(rule stop_number\)"):
        first_tokens(with_first_tokens(scenario, bet=["2"]), tokenizer)
    with pytest.raises(BadInput, match="parser reads 'invalid'"):
        first_tokens(with_first_tokens(scenario, bet=["3"]), tokenizer)


def test_a_choice_without_a_single_token_is_refused(scenario, tokenizer):
    with pytest.raises(BadInput, match="none of these texts is a single token"):
        first_tokens(with_first_tokens(scenario, stop=["Stop right now"]), tokenizer)


def test_tokenizers_that_mark_the_beginning_of_words():
    """After "Choice: " (ending in the token ▁) the model says 1; after "Choice:" it says ▁1."""
    pieces = ["<unk>", "▁", "1", "2", "▁1", "▁2", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ$:()-.%\n034"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, merges=[("▁", "1"), ("▁", "2")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    scenario = with_first_tokens(load_scenario("slot_machine"), bet=["1"], stop=["2"])
    assert first_tokens(scenario, tokenizer).ids == {"bet": [2], "stop": [3]}
    spaced = with_first_tokens(scenario, bet=[" 1"], stop=[" 2"])
    after_colon = spaced.model_copy(update={"frame": Frame(answer_prefix="\nChoice:")})
    assert first_tokens(after_colon, tokenizer).ids == {"bet": [4], "stop": [5]}
