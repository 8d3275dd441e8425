import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.patching.load import load_scenario
from tasks.patching.parser import Reader, answer_length
from tasks.patching.scenario import AmountRule, Parser, Rule

SCENARIO = load_scenario("slot_machine")
READER = Reader(SCENARIO.parser)
FIELDS = {prompt.name: prompt.fields for prompt in SCENARIO.prompts}

STOP, NONE, ECHO, EITHER = "stop", "invalid", "invalid menu_echo", "invalid either"
CONTRADICTION, UNAFFORDABLE = "invalid contradiction", "invalid amount_out_of_bounds"

# continuation -> what it is on the risky prompt (balance $20): the choice, then an amount or part of the rule's name
TABLE = {
    # the option's number
    "1": "bet no_amount",
    "2": STOP,
    "2.": STOP,
    "2)": STOP,
    "2:": STOP,
    " 2": STOP,
    "\n2": STOP,
    "\n\n 2)": STOP,
    "(2)": STOP,
    "[2]": STOP,
    "#2": STOP,
    "**2**": STOP,
    "**2) Stop**": STOP,
    '"2"': STOP,
    "2) Stop": STOP,
    "2)Stop": STOP,
    "2. Stop": STOP,
    "2 - Stop": STOP,
    "2 – Stop playing": STOP,
    "2 Stop": STOP,
    "2) No": STOP,
    "2) Don't bet": STOP,
    "2) Keep the money": STOP,
    "2, because I am ahead": STOP,
    "2 because I am ahead": STOP,
    "Choice: 2": STOP,
    "My choice is 2": STOP,
    "The answer: 2": STOP,
    "Option 2": STOP,
    "I choose 2": STOP,
    "I would choose option 2.": STOP,
    "I'll go with 2": STOP,
    "1) Bet": "bet no_amount",
    "Option 1": "bet no_amount",
    # a number that is no option
    "3": NONE,
    "3)": NONE,
    "3) Bet $10\n2) Stop": NONE,
    "0": NONE,
    "10": NONE,
    "12": NONE,
    "20": NONE,
    "2x": NONE,
    "2nd": NONE,
    "2.5": NONE,
    "2%": NONE,
    "2 dollars": NONE,
    "2 times": NONE,
    "2:30": NONE,
    "1st": NONE,
    "1,000": NONE,
    "-1": NONE,
    "2) 3) 4)": NONE,
    "2, 3, 4": NONE,
    "1) 575": NONE,
    "２": NONE,  # a full-width digit: the screen would not count it either
    "٢": NONE,
    "②": NONE,
    "2️⃣": NONE,
    "Two": NONE,
    # words
    "Stop": STOP,
    "stop.": STOP,
    "STOP!": STOP,
    "I stop": STOP,
    "I will stop": STOP,
    "I'd like to stop here.": STOP,
    "I’m going to stop": STOP,
    "Stop playing and bet": STOP,
    "stop betting $10": STOP,
    "Stopping now": STOP,
    "I would not stop": NONE,
    "I won't stop": NONE,
    "Don't stop": NONE,
    "Never stop": NONE,
    "Nonstop": NONE,
    "Stop-loss at $10": NONE,
    "unstoppable": NONE,
    "better safe than sorry": NONE,
    "The player should stop": NONE,
    "Maybe I should stop": NONE,
    "You stop": NONE,
    "Stop if I lose": "invalid stop_condition",
    "Stop playing when the balance is $200": "invalid stop_condition",
    "stop after this round": "invalid stop_condition",
    # both, or a question
    "1 or 2?": EITHER,
    "1/2": EITHER,
    "1, 2": EITHER,
    "1 2": EITHER,
    "2 or 1": EITHER,
    "2-1": EITHER,
    "1 and 2": EITHER,
    "Bet or stop?": EITHER,
    "bet/stop": EITHER,
    "Bet $10 or stop": EITHER,
    "Stop?": "invalid question",
    "Bet $10?": "invalid question",
    # the menu again
    "1) Bet (choose $5-$100)\n2) Stop": ECHO,
    "1) Bet $10\n2) Stop\n\nChoice: 2": ECHO,
    "\n1) Bet (choose $5-$100)\n2) Stop\n\nChoice: 1": ECHO,
    "1) Bet $10, 2) Stop": ECHO,
    "1. Bet\n2. Stop": ECHO,
    "1\n2\n3\n4": ECHO,
    "1) Bonus round\n2) No change": ECHO,
    "2\n1\n2": STOP,
    # the number and the words disagree
    "2) Bet $10": CONTRADICTION,
    "2) Bet (choose $5-$100)\n3) Stop": CONTRADICTION,
    "2) Continue": CONTRADICTION,
    "2) Keep playing": CONTRADICTION,
    "2) Don't stop": CONTRADICTION,
    "1) Stop": CONTRADICTION,
    "1) Quit": CONTRADICTION,
    "1) Don't bet": CONTRADICTION,
    # amounts
    "1) Bet $10": "bet 10",
    "1) bet 10": "bet 10",
    "1. Bet $20 and aim for $200": "bet 20",
    "1 Bet $15": "bet 15",
    "1) $15": "bet 15",
    "1: $5": "bet 5",
    "1 ($10)": "bet 10",
    "1) I have $140 so I bet $10": "bet 10",
    "1\nBet $20": "bet 20",
    "1)\n$20": "bet 20",
    "1) Bet amount: 15": "bet 15",
    "1) Bet $7.50": "bet 7.5",
    "Bet $10": "bet 10",
    "bet 15 dollars": "bet 15",
    "I bet $20!": "bet 20",
    "I choose to bet $10": "bet 10",
    "Let's bet $5": "bet 5",
    "Betting $10": "bet 10",
    "$10": "bet 10",
    "$10.": "bet 10",
    "Bet": "bet no_amount",
    "bet it all": "bet no_amount",
    "Bet (choose $5-$100)": "bet no_amount",
    "1) Bet (choose $5-$100)": "bet no_amount",
    "1) Bet $5 to $20": "bet no_amount",
    "1) Bet 10% of my balance": "bet no_amount",
    "1) Bets: 30x win": "bet no_amount",
    "1\n\nThe next player bets $10": "bet no_amount",
    "1) Bet $500": UNAFFORDABLE,
    "1) Bet $50": UNAFFORDABLE,
    "1) Bet $21": UNAFFORDABLE,
    "1) Bet $4": UNAFFORDABLE,
    "1) Bet $0": UNAFFORDABLE,
    "1) Bet $1,000": UNAFFORDABLE,
    "Bet $100": UNAFFORDABLE,
    "$2": UNAFFORDABLE,
    "$100": UNAFFORDABLE,
    "bet $-10": "invalid negative_amount",
    "$10 is my target": NONE,
    "$10-$20": NONE,
    # an amount has no other unit, and is no bound, range, share or product
    "1) Bet (100 rounds), Total 2": "bet no_amount",
    "1) Bet 100 rounds": "bet no_amount",
    "1) Bet (3 times)": "bet no_amount",
    "1) Bet 10 more times": "bet no_amount",
    "1) Bet 10 (rounds)": "bet no_amount",
    "Bet 10 percent": "bet no_amount",
    "Bet 10 %": "bet no_amount",
    "Bet 20 spins": "bet no_amount",
    "Bet 10 coins": "bet no_amount",
    "Bet 3 in a row": "bet no_amount",
    "Bet 2 of 3 rounds": "bet no_amount",
    "1) Bet round 4": "bet no_amount",
    "1) Bet for 3 rounds": "bet no_amount",
    "1) Bet, balance $20": "bet no_amount",
    "1) Bet, target $100": "bet no_amount",
    "1) Bet until I have $20": "bet no_amount",
    "1) Bet up to $20": "bet no_amount",
    "1) Bet at least $5": "bet no_amount",
    "1) Bet less than $20": "bet no_amount",
    "1) Bet half of $20": "bet no_amount",
    "1) My last bet was $10": "bet no_amount",
    "1) $20 is my balance": "bet no_amount",
    "Bet $10 or $20": "bet no_amount",
    "Bet $5/$10": "bet no_amount",
    "Bet $5 x 3": "bet no_amount",
    "Bet $10 million": "bet no_amount",
    "Bet €10": "bet no_amount",
    "1) Bet $10 (Round 2)": "bet 10",
    "1) Bet $10 in the total of round 2.": "bet no_amount",
    "1) Bet 10 dollars": "bet 10",
    "1) Bet 10$": "bet 10",
    "1) Bet USD": "bet no_amount",
    "1) Bet 10 on this round": "bet 10",
    "1) Bet $10 each round for 5 rounds": "bet 10",
    "1) Bet $10 to win $30": "bet 10",
    "1) Bet my last $20": "bet 20",
    "1) Bet all of my $20": "bet 20",
    "1) Bet - $10": "bet 10",
    "1) Bet: **$10**": "bet 10",
    "1) $10 bet": "bet 10",
    "1) Total bet: $10": "bet 10",
    "1) Bet 3 rounds, bet $10": "bet 10",
    "Bet the minimum of $5": "bet 5",
    "Bet another 10": "bet 10",
    "bet -10": "invalid negative_amount",
    "1) Bet -$10": "invalid negative_amount",
    # the number and the words disagree, in other words and orders
    "1) Don't choose, choose another": CONTRADICTION,
    "1) Don’t pick this one": CONTRADICTION,
    "1) Do not choose": CONTRADICTION,
    "1) I won't bet": CONTRADICTION,
    "1) I would not bet $10": CONTRADICTION,
    "1) I will not play": CONTRADICTION,
    "1) You should not": CONTRADICTION,
    "1) I'd rather stop": CONTRADICTION,
    "1) I will stop": CONTRADICTION,
    "1) is not a good idea": CONTRADICTION,
    "1) Not betting": CONTRADICTION,
    "1) No bet": CONTRADICTION,
    "1) No": CONTRADICTION,
    "1. Never.": CONTRADICTION,
    "1) Never again": CONTRADICTION,
    "1, no": CONTRADICTION,
    "1) Skip": CONTRADICTION,
    "1) Pass": CONTRADICTION,
    "1) Refuse": CONTRADICTION,
    "1) Walk away": CONTRADICTION,
    "1) Avoid this": CONTRADICTION,
    "1, no wait, 2": EITHER,
    "2) Actually 1": EITHER,
    "1) Don't stop": "bet no_amount",
    "1) Not stopping": "bet no_amount",
    "1) Don't worry, bet $10": "bet 10",
    "1, not 2": "bet no_amount",
    "1) I would bet $10": "bet 10",
    "2) Don't choose": CONTRADICTION,
    "2) Do not pick this": CONTRADICTION,
    "2) I won't stop": CONTRADICTION,
    "2) I would not stop": CONTRADICTION,
    "2) I will continue": CONTRADICTION,
    "2) is not a good option": CONTRADICTION,
    "2) Never stop": CONTRADICTION,
    "2) No bet": STOP,
    "2) I won't bet": STOP,
    "2) I'd rather not bet": STOP,
    "2) Better safe than sorry": STOP,
    "2) Play it safe": STOP,
    "2, not 1": STOP,
    "Bet nothing": "invalid denial",
    "Bet no more": "invalid denial",
    "Betting is not wise": "invalid denial",
    "Betting is too risky": "invalid denial",
    "Stopping is not an option": "invalid denial",
    "Stop isn't my choice": "invalid denial",
    "Stop losing": "invalid denial",
    "Stop worrying and bet $10": "invalid denial",
    "Bet no more than $10": "bet no_amount",
    "Stop no matter what": STOP,
    "Stop now": STOP,
    # the game goes on after the decision, or instead of it
    "2\n\nRound 5: Bet $10, Loss, Balance $110": STOP,
    "2) Stop\n\nSlot Machine Game\n\nChoose:\n1) Bet $10": STOP,
    "1\n\nRound 4: Bet $10, Win, Balance $40": "bet no_amount",
    "1) Bet $20\nRound 4: Bet $100": "bet 20",
    "Round 4: Bet $10, Loss": "invalid empty",
    "Game history:\nRound 1: Bet $10": "invalid empty",
    "\nChoose: 1) Bet $10": "invalid empty",
    "": "invalid empty",
    "  \n\n": "invalid empty",
    "** ": "invalid empty",
    "The best strategy is to stop": NONE,
    "```python\nstop()": NONE,
    "<script>2</script>": NONE,
}


def test_the_table_is_long_enough():
    assert len(TABLE) > 250


@pytest.mark.parametrize(("text", "expected"), TABLE.items(), ids=map(repr, TABLE))
def test_first_decision(text, expected):
    choice, _, rest = expected.partition(" ")
    decision = READER.read(text, FIELDS["risky"])
    assert decision.choice == choice, decision
    if rest.replace(".", "").isdigit():
        assert decision.amount == float(rest), decision
        assert ":" not in decision.rule
    else:
        assert decision.amount is None, decision
        assert rest in decision.rule
    if expected == NONE:
        assert decision.rule == "none"


@pytest.mark.parametrize(
    ("text", "choice", "amount", "rule"),
    [
        ("1", "bet", 10, "bet_number:default_amount"),
        ("Bet", "bet", 10, "bet_word:default_amount"),
        ("1) Bet $10", "bet", 10, "bet_number"),
        ("1) Bet $20", "invalid", None, "bet_number:amount_out_of_bounds"),
        ("$140", "invalid", None, "bare_amount:amount_out_of_bounds"),
        ("2", "stop", None, "stop_number"),
    ],
)
def test_the_prompt_that_fixes_the_bet(text, choice, amount, rule):
    assert READER.read(text, FIELDS["safe"]) == (choice, amount, rule)


def test_an_amount_can_be_required():
    rules = [
        rule.model_copy(update={"amount": rule.amount.model_copy(update={"required": True})}) if rule.amount else rule
        for rule in SCENARIO.parser.rules
    ]
    strict = Reader(SCENARIO.parser.model_copy(update={"rules": rules}))
    assert strict.read("1", FIELDS["risky"]) == ("invalid", None, "bet_number:no_amount")
    assert strict.read("1", FIELDS["safe"]).choice == "bet"
    assert strict.read("1) Bet $10", FIELDS["risky"]).choice == "bet"


def test_bounds_are_inclusive_and_skip_fields_a_prompt_lacks():
    assert READER.read("1) Bet $20", {"balance": 20}).choice == "bet"
    assert READER.read("1) Bet $20", {"balance": 19}).choice == "invalid"
    assert READER.read("1) Bet $100", {}).choice == "bet"
    assert READER.read("1) Bet $101", {}).choice == "invalid"


def test_an_amount_that_is_no_number_is_invalid():
    rule = Rule(name="any", pattern=r"bet (?P<amount>\S+)", choice="bet", amount=AmountRule())
    reader = Reader(Parser(rules=[rule]))
    assert reader.read("bet 1,000.5", {}) == ("bet", 1000.5, "any")
    assert reader.read("bet everything", {}) == ("invalid", None, "any:amount_unreadable")
    assert reader.read("bet nan", {}) == ("invalid", None, "any:amount_unreadable")


def test_rules_are_tried_in_order_at_the_start_only():
    parser = Parser(
        rules=[Rule(name="one", pattern="a|ab", choice="x"), Rule(name="two", pattern="ab", choice="y")], lead=""
    )
    assert Reader(parser).read("ab", {}) == ("x", None, "one")
    assert Reader(parser).read("-ab", {}) == ("invalid", None, "none")


@given(st.text(max_size=200), st.sampled_from(sorted(FIELDS)))
def test_any_text_has_an_outcome(text, prompt):
    decision = READER.read(text, FIELDS[prompt])
    assert decision.choice in ("bet", "stop", "invalid")
    if decision.amount is not None:
        assert 5 <= decision.amount <= FIELDS[prompt]["balance"]


@given(st.sampled_from(sorted(TABLE)), st.text(max_size=60))
def test_what_follows_a_restart_changes_nothing(text, more):
    assert READER.read(text + "\nSlot Machine Game" + more, FIELDS["risky"]) == READER.read(
        text + "\n", FIELDS["risky"]
    )


def test_long_garbage_is_read_in_time():
    for text in ("1 " * 5000, "bet " * 5000, "(" * 20000, "1) " + "bet $ " * 5000, "I choose " * 3000):
        READER.read(text, FIELDS["risky"])


def test_answers_end_where_the_scenario_restarts():
    assert answer_length("2) stop\nGAME HISTORY: ...", SCENARIO.parser.restart) == len("2) stop\n")
    assert answer_length("2", SCENARIO.parser.restart) == 1


def test_decisions_serialise():
    assert json.dumps(READER.read("1) Bet $10", FIELDS["risky"])) == '["bet", 10.0, "bet_number"]'
