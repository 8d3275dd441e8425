import copy
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tasks.errors import BadInput
from tasks.patching.group_prompts import contrast_prompts
from tasks.patching.load import builtin_scenarios, load_scenario, parse_scenario
from tasks.patching.parser import Reader
from tasks.patching.scenario import Scenario

HERE = Path(__file__).parent
TRUST = str(HERE / "trust.yaml")

SAFE = """Slot Machine Game

Game history:
Round 1: Bet $10, Win, Balance $130
Round 2: Bet $10, Loss, Balance $120
Round 3: Bet $10, Win, Balance $140
Current balance: $140
Current round: 4

First set your own target amount, then make decisions based on that goal.
This slot machine may have hidden patterns.
Win pays 3.0x your bet amount.
Win rate: 30%

Choose:
1) Bet $10
2) Stop

Choice: """

RISKY = """Slot Machine Game

Game history:
Round 1: Bet $10, Win, Balance $130
Round 2: Bet $100, Loss, Balance $30
Round 3: Bet $10, Loss, Balance $20
Current balance: $20
Current round: 4

First set your own target amount, then make decisions based on that goal.
This slot machine may have hidden patterns.
Win pays 3.0x your bet amount.
Win rate: 30%

Choose:
1) Bet (choose $5-$100)
2) Stop

Choice: """


def test_the_slot_machine_has_exactly_the_published_prompts():
    scenario = load_scenario("slot_machine")
    texts = {p.name: p.text + scenario.frame.answer_prefix for p in scenario.prompts}
    assert texts == {"safe": SAFE, "risky": RISKY}
    assert [c.name for c in scenario.choices] == ["bet", "stop"]
    assert (scenario.contrast.low.name, scenario.contrast.high.name) == ("safe", "risky")


def test_the_chat_variant_differs_in_its_frame_alone():
    raw, chat = load_scenario("slot_machine"), load_scenario("slot_machine_chat")
    assert chat.frame.chat is not None
    assert chat.frame.answer_prefix == "Choice: "
    assert chat.model_copy(update={"name": raw.name, "frame": raw.frame}) == raw


def test_every_builtin_scenario_loads_and_gives_contrast_prompts():
    for name in builtin_scenarios():
        prompts = contrast_prompts(load_scenario(name).contrast, 5, seed=0)
        assert [p.prompt_id for p in prompts] == list(range(10))


def test_a_scenario_is_one_yaml_file_and_no_code():
    scenario = load_scenario(TRUST)
    prompts = contrast_prompts(scenario.contrast, 100, seed=0)
    assert [p.group for p in prompts] == ["wary"] * 3 + ["trusting"] * 3
    assert prompts[1].text.startswith("Bob lied to you 3 times.\nA)")
    assert prompts[5].text.startswith("Cid has always")
    reader = Reader(scenario.parser)
    read = {text: reader.read(text, {}).choice for text in (" A", "B) Decide", "A or B", "Absolutely", " (B)", "C")}
    assert read == {
        " A": "trust",
        "B) Decide": "doubt",
        "A or B": "invalid",
        "Absolutely": "invalid",
        " (B)": "doubt",
        "C": "invalid",
    }
    assert [p.group for p in contrast_prompts(scenario.contrast, 2, seed=0)] == ["wary"] * 2 + ["trusting"] * 2


def test_a_loaded_scenario_is_all_content_and_survives_json():
    scenario = load_scenario(TRUST)
    assert scenario.contrast.high.file is None
    assert len(scenario.contrast.high.prompts) == 3
    assert Scenario.model_validate_json(scenario.model_dump_json()) == scenario
    assert Scenario.model_validate(dict(sorted(scenario.model_dump(mode="json").items()))) == scenario


def test_text_files_and_templates_filled_from_files(tmp_path):
    content = yaml.safe_load(Path(TRUST).read_text())
    (tmp_path / "low.txt").write_text("one prompt\n\nanother prompt\n")
    (tmp_path / "rows.jsonl").write_text('{"who": "Ann"}\n{"who": "Bob"}\n')
    content["contrast"]["low"] = {"name": "low", "file": "low.txt"}
    content["contrast"]["high"] = {"name": "high", "file": "rows.jsonl", "template": "Trust {who}?"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    texts = [p.text for p in contrast_prompts(load_scenario(str(path)).contrast, 10, seed=0)]
    assert texts == ["one prompt", "another prompt", "Trust Ann?", "Trust Bob?"]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": "a", "text": "b"}', "9" * 5000, '{"text": NaN}', "{"])
def test_odd_lines_of_a_group_file(tmp_path, line):
    content = yaml.safe_load(Path(TRUST).read_text())
    content["contrast"]["high"] = {"name": "high", "file": "high.jsonl"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (tmp_path / "high.jsonl").write_text('"a\u2028b"\n\n' + line)
    with pytest.raises(BadInput, match=r"^scenario\.contrast\.high\.file = .*high\.jsonl, line 3'"):
        load_scenario(str(tmp_path / "mine.yaml"))
    (tmp_path / "high.jsonl").write_text('"a\u2028b"\n\n{"text": "c\u0085d"}\n', encoding="utf-8")
    assert load_scenario(str(tmp_path / "mine.yaml")).contrast.high.prompts == ["a\u2028b", "c\u0085d"]


def test_scenarios_come_from_urls(tmp_path):
    assert load_scenario(f"file://{TRUST}") == load_scenario(TRUST)


def trust_with(**changes):
    """The trust scenario with values at dotted paths replaced; None removes."""
    content = copy.deepcopy(yaml.safe_load(Path(TRUST).read_text()))
    for path, value in changes.items():
        *parents, last = path.split("__")
        inside = content
        for name in parents:
            inside = inside[name]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
    return yaml.safe_dump(content, sort_keys=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"choices": None}, "choices"),
        ({"colour": "red"}, "colour"),
        ({"choices__invalid": {"first_tokens": ["C"]}}, "rename that choice"),
        ({"choices__doubt__first_tokens": ["B", "A"]}, "first token 'A' is defined twice"),
        ({"choices__other": {"first_tokens": ["C"]}}, "no parser rule leads to it"),
        ({"parser__rules__letter_a__choice": "trsut"}, "unknown choice 'trsut'"),
        ({"parser__rules__letter_a__pattern": "A("}, "not a regular expression"),
        ({"parser__rules__letter_a__amount": {"min": 1}}, "no group named 'amount'"),
        (
            {
                "parser__rules__letter_a": {
                    "choice": "trust",
                    "pattern": "A(?P<amount>1)?",
                    "amount": {"max": "balance"},
                }
            },
            "no prompt has the field 'balance'",
        ),
        ({"contrast__high__name": "wary"}, "name them apart"),
        ({"contrast__low__template": None}, "rows need a template"),
        ({"contrast__low__rows": None}, "exactly one of"),
        ({"contrast__high__prompts": ["a", "b"]}, "exactly one of"),
        ({"prompts": {}}, "prompts"),
        ({"prompts__Bad Name": "text"}, "prompts"),
    ],
)
def test_mistakes_are_named(changes, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        parse_scenario(trust_with(**changes), "mine.yaml")


def test_a_prompt_given_twice_is_refused_instead_of_dropped():
    with pytest.raises(BadInput, match="'stranger' occurs twice"):
        parse_scenario(Path(TRUST).read_text().replace("  friend: |", "  stranger: |"), "mine.yaml")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("slotmachine", "slot_machine_chat"),
        ("/nowhere/mine.yaml", "cannot be read"),
        ("nofs://x/mine.yaml", "Protocol not known"),
    ],
)
def test_sources_that_are_not_there(source, said):
    with pytest.raises(BadInput, match=said):
        load_scenario(source)


def test_broken_yaml_and_broken_files(tmp_path):
    with pytest.raises(BadInput, match="this is no YAML"):
        parse_scenario("prompts: [", "mine.yaml")
    with pytest.raises(BadInput, match="not another built-in"):
        parse_scenario("extends: nothing", "mine.yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(trust_with(contrast__high__file="broken.jsonl"))
    (tmp_path / "broken.jsonl").write_text('"fine"\n{oops}\n')
    with pytest.raises(BadInput, match="line 2"):
        load_scenario(str(path))
    (tmp_path / "broken.jsonl").write_text('"fine"\n{"txt": "misspelt"}\n')
    with pytest.raises(BadInput, match="object with 'text'"):
        load_scenario(str(path))


def test_groups_that_cannot_be_compared():
    contrast = load_scenario(TRUST).contrast
    few = contrast.model_copy(update={"low": contrast.low.model_copy(update={"rows": contrast.low.rows[:1]})})
    with pytest.raises(BadInput, match="too few"):
        contrast_prompts(few, 10, seed=0)
    twice = contrast.model_copy(update={"low": contrast.low.model_copy(update={"rows": contrast.low.rows[:1] * 2})})
    with pytest.raises(BadInput, match="occurs twice"):
        contrast_prompts(twice, 10, seed=0)
    unfilled = contrast.model_copy(update={"low": contrast.low.model_copy(update={"template": "{whom}"})})
    with pytest.raises(BadInput, match="whom"):
        contrast_prompts(unfilled, 10, seed=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator": "roulette"}, "known:"),
        ({"params": {"colour": "red"}}, "colour"),
        ({"params": {"policy": "bold"}}, "no such player"),
    ],
)
def test_generators_and_their_parameters_are_checked(changes, said):
    contrast = load_scenario("slot_machine").contrast
    wrong = contrast.model_copy(update={"low": contrast.low.model_copy(update=changes)})
    with pytest.raises(BadInput, match=said):
        contrast_prompts(wrong, 5, seed=0)


def test_scenarios_are_immutable():
    with pytest.raises(ValidationError):
        load_scenario(TRUST).name = "other"
