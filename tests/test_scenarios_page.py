"""What the page on scenarios and the README's example say is so, on the embedded model where it takes one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tasks.models.load import load_tokenizer
from tasks.models.spec import ModelRef
from tasks.patching.__main__ import EXIT_BAD_INPUT, EXIT_OK, main
from tasks.patching.first_tokens import first_tokens
from tasks.patching.group_prompts import contrast_prompts
from tasks.patching.load import parse_scenario
from tasks.patching.parser import Reader
from tasks.patching.scenario import AmountRule, Choice, Contrast, Group, Parser, Prompt, Rule, Scenario
from tasks.patching.spec import ScenarioRef
from tasks.patching.try_scenario import prompt_lines
from tasks.patching.tryout import Answer, NextToken, Tryout
from tasks.text.spec import Chat, Frame

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "scenarios.md").read_text()
BLOCKS = {re.search(r"^name: (\w+)", block, re.M)[1]: block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)}
PARTS = (Scenario, Prompt, Choice, Frame, Chat, Parser, Rule, AmountRule, Contrast, Group)
TRUST = DOCS / "trust" / "trust.yaml"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelRef())


@pytest.mark.parametrize("name", BLOCKS)
def test_every_example_is_a_scenario_of_the_embedded_model(name, tokenizer):
    scenario = parse_scenario(BLOCKS[name], f"{name}.yaml")
    assert len(contrast_prompts(scenario.contrast, 4, seed=0)) >= 4
    assert all(first_tokens(scenario, tokenizer).ids.values())


@pytest.mark.parametrize(
    ("answer", "prompt", "choice", "amount"),
    [
        ("1) Give an amount: $50", "rich", "give", 50),
        ("Option 2", "rich", "nothing", None),
        ("1 and 2", "rich", "invalid", None),
        ("1) $50", "poor", "invalid", None),
        ("1\nYou have $90", "poor", "give", None),
        ("perhaps", "poor", "invalid", None),
    ],
)
def test_the_rules_of_the_page_read_what_it_says(answer, prompt, choice, amount):
    scenario = parse_scenario(BLOCKS["donation"], "donation.yaml")
    [fields] = [one.fields for one in scenario.prompts if one.name == prompt]
    decision = Reader(scenario.parser).read(answer, fields)
    assert (decision.choice, decision.amount) == (choice, amount)


@pytest.mark.parametrize(
    "model",
    [Scenario, Prompt, Choice, Frame, Chat, Parser, Rule, AmountRule, Contrast, Group],
    ids=lambda m: m.__name__,
)
def test_every_key_is_on_the_page(model: type[BaseModel]):
    in_table = " ".join(re.findall(r"^\| `.*$", PAGE, re.M))
    assert [key for key in model.model_fields if not re.search(rf"\b{key}\b", in_table)] == []


def test_the_thresholds_of_the_page_are_the_codes():
    from tasks.patching.trier import ANSWERS, MORE_ANSWERS

    assert (ScenarioRef().min_choice_mass, ANSWERS, MORE_ANSWERS) == (0.02, 10, 32)
    for said in ("`scenario.min_choice_mass` (2 %)", "ten\nsampled answers", "first 32 answers"):
        assert said in PAGE


def test_the_readmes_example_works_on_the_embedded_model(capsys):
    """Tried as a user would: most of the mass is on the choices, and most answers are read."""
    assert main(["try", str(TRUST)]) == EXIT_OK
    out = capsys.readouterr().out
    together = re.search(r"accept (\d+) %, refuse (\d+) %; together (\d+) %", out)
    accept, refuse, both = map(int, together.groups())
    assert min(accept, refuse) > 20
    assert both > 80
    assert int(re.search(r"(\d+) of 10 answers are read", out)[1]) >= 7
    assert "  | <|im_start|>assistant\n  | Answer:" in out
    assert "contrast: wary 24 prompts, trusting 24 prompts" in out
    assert out.endswith("a study would take this scenario\n")


def test_a_prefix_that_ends_in_a_space_is_refused_with_the_frame_that_works(tmp_path, capsys):
    for file in TRUST.parent.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    mistaken = TRUST.read_text().replace('{chat: {}, answer_prefix: "Answer:"}', r'{answer_prefix: "\nAnswer: "}')
    (tmp_path / "trust.yaml").write_text(mistaken)
    assert main(["try", str(tmp_path / "trust.yaml")]) == EXIT_BAD_INPUT
    shown = capsys.readouterr()
    assert "most probable are '1' " in shown.err
    assert 'use frame: {"answer_prefix": "Answer:", "chat": {}}, where the parser reads \' A\' ' in shown.err
    assert "0 of 32 answers are read as a choice" in shown.out


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["nowhere"], "scenario"),
        ([str(TRUST), "--temperature", "-1"], "study.trials.temperature"),
        ([str(TRUST), "--device", "gpu9"], "--device"),
        ([str(TRUST), "--device", "cuda:99"], "--device"),
        ([str(TRUST), "--min-choice-mass", "2"], "study.scenario.min_choice_mass"),
        ([str(TRUST), "--max-new-tokens", "100000"], "study.trials.max_new_tokens"),
    ],
)
def test_bad_input_is_named_in_one_line(arguments, field, capsys):
    assert main(["try", *arguments]) == EXIT_BAD_INPUT
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(field)


def test_a_prompt_in_lines():
    tryout = Tryout(
        prompt="plain",
        text="Yes or\nno?",
        tokens=["Yes", " or", "\n", "no", "?"],
        mass={"yes": 0.25, "no": 0.004},
        next=[
            NextToken(text=" Yes", probability=0.25, counts_as="yes", read_as="yes"),
            NextToken(text=" no", probability=0.1, counts_as=None, read_as="no"),
            NextToken(text=" N", probability=0.004, counts_as="no", read_as=None),
        ],
        answers=[Answer(text=" Yes", choice="yes", rule="says_yes"), Answer(text="\n", choice="invalid", rule="empty")],
    )
    said = tryout.in_words()
    assert said.startswith("yes 25 %, no 0.4 % by the first token; most probable ' Yes' 25 %, ' no' 10 %")
    assert said.endswith("1 of 2 answers read")
    assert list(prompt_lines(tryout)) == [
        "prompt plain, as the model reads it:",
        "  | Yes or",
        "  | no?",
        "its 5 tokens:",
        r"  'Yes' ' or' '\n' 'no' '?'",
        "most probable next tokens:",
        "    25 %  ' Yes'  yes",
        "    10 %  ' no'  the parser reads it as no, but it is none of its first_tokens",
        "   0.4 %  ' N'  no; alone, the parser reads it as invalid",
        "mass of the choices' first tokens: yes 25 %, no 0.4 %; together 25 %",
        "sampled answers, as the parser reads them:",
        "  yes      by says_yes  ' Yes'",
        r"  invalid  by empty     '\n'",
        "1 of 2 answers are read as a choice",
    ]
