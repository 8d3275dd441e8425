"""Prompts in their frames, to tokens; answers back to text."""

import pytest

from tasks.errors import BadInput
from tasks.text.prompts import cut_at_stop, encode, render
from tasks.text.spec import Chat, Frame
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


def test_a_prompt_does_not_depend_on_the_day(tokenizer):
    dated = tiny_tokenizer()
    dated.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    assert "26 Jul 2024" in dated.decode(render(dated, "Bet $10", chat=True))


MESSAGES = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}<|user|>{{ m['content'] }}\n{% endfor %}"
PARTS_ONLY = "{% for m in messages %}<|user|>{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "system", "problem"),
    [
        (MESSAGES, None, None),
        (MESSAGES, "Be brief.", None),
        (NO_SYSTEM + MESSAGES, None, None),
        (NO_SYSTEM + MESSAGES, "Be brief.", "no system message here.*; leave system out"),
        (DROPS_SYSTEM, None, None),
        (DROPS_SYSTEM, "Be brief.", "leaves the system message out; leave system out"),
        (DROPS_SYSTEM, "Bet $10", "leaves the system message out"),  # though its words are there, as the user's
        (PARTS_ONLY, None, "leaves the user message out"),
        ("Be brief.", None, "leaves the user message out"),
        ("{% for m in messages %}{{ m['content'] }", None, "TemplateSyntaxError"),
        ("{{ messages[5]['content'].upper() }}", None, "UndefinedError"),
        ("{{ messages[0].__class__.__mro__ }}" + MESSAGES, None, "SecurityError"),
        ("{{ 1 // 0 }}", None, "ZeroDivisionError"),
        ("{{ messages[0]['content'] + 1 }}", None, "TypeError"),
        ({"tool_use": MESSAGES, "rag": MESSAGES}, None, r"\['rag', 'tool_use'\].*none is called default"),
        ({"tool_use": "", "default": MESSAGES}, "Be brief.", None),
    ],
)
def test_a_template_frames_every_message_or_is_refused(template, system, problem):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if problem is None:
        framed = tokenizer.decode(render(tokenizer, "Bet $10", chat=True, system=system))
        assert "Bet $10" in framed
        assert (system or "") in framed
    else:
        with pytest.raises(BadInput, match=f"^scenario.frame.chat = .*{problem}"):
            render(tokenizer, "Bet $10", chat=True, system=system, field="scenario.frame.chat")


def test_raw_frames_end_in_the_prefix_and_start_as_the_tokenizer_wants(tokenizer):
    ids = encode(tokenizer, "Bet or stop?", Frame(answer_prefix="\nChoice: "))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:]) == "Bet or stop?\nChoice: "


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_frames_have_one_beginning_and_end_in_the_prefix(tokenizer, system):
    ids = encode(tokenizer, "Bet or stop?", Frame(answer_prefix="Choice: ", chat=Chat(system=system)))
    assert ids.count(tokenizer.bos_token_id) == 1
    said = "" if system is None else f"<|system|>{system}\n"
    assert tokenizer.decode(ids) == f"<s>{said}<|user|>Bet or stop?\n<|assistant|>Choice: "


def test_chat_needs_a_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="no chat template"):
        encode(tokenizer, "Bet or stop?", Frame(chat=Chat()))


def test_responses_end_before_the_first_stop_string():
    assert cut_at_stop("one two three", ["three", "two"]) == "one "
    assert cut_at_stop("one", []) == "one"
