import pytest

from tasks.errors import BadInput
from tasks.models.chat import render
from tests.models.tiny import tiny_tokenizer

BOS = 1


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_plain_text_gets_the_default_special_tokens(tokenizer):
    ids = render(tokenizer, "Bet $10")
    assert ids.count(BOS) == 1
    assert ids[0] == BOS
    assert tokenizer.decode(ids[1:]) == "Bet $10"


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_chat_has_one_beginning_and_ends_where_the_answer_begins(tokenizer, system):
    ids = render(tokenizer, "Bet $10", chat=True, system=system)
    assert all(type(i) is int for i in ids)
    assert ids.count(BOS) == 1
    begin = "<s>" if system is None else f"<s><|system|>{system}\n"
    assert tokenizer.decode(ids) == f"{begin}<|user|>Bet $10\n<|assistant|>"
    # the trap: rendering to text and tokenizing that doubles the beginning
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert tokenizer(text)["input_ids"].count(BOS) == 2


def test_trailing_space_is_kept(tokenizer):
    assert tokenizer.decode(render(tokenizer, "Choice: "), skip_special_tokens=True) == "Choice: "


def test_chat_without_a_template_and_system_without_chat_are_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(BadInput, match="system"):
        render(tokenizer, "x", system="y")
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="no chat template"):
        render(tokenizer, "x", chat=True)
