import re
import subprocess
import sys
from collections import Counter

import pytest

from tasks.errors import BadInput
from tasks.patching.load import load_scenario
from tasks.patching.slot_machine import MAX_BET, MIN_BET, OPTIONS, START_BALANCE, Round, histories, prompt_text

ROUND = re.compile(r"Round (\d+): Bet \$(\d+), (Win|Loss), Balance \$(\d+)")


def rounds(text):
    return [Round(int(bet), won == "Win", int(balance)) for _, bet, won, balance in ROUND.findall(text)]


def test_the_template_is_that_of_the_scenarios_prompts():
    for prompt, option in zip(load_scenario("slot_machine").prompts, OPTIONS.values(), strict=True):
        assert prompt_text(rounds(prompt.text), option) == prompt.text


@pytest.mark.parametrize("policy", ["cautious", "chasing"])
def test_histories_are_played_by_the_rules(policy):
    texts = histories(200, 3, policy=policy)
    assert len(set(texts)) == 200
    for text in texts:
        balance = START_BALANCE
        played = rounds(text)
        assert 3 <= len(played) <= 8
        for r in played:
            assert MIN_BET <= r.bet <= min(MAX_BET, balance)
            balance += 2 * r.bet if r.win else -r.bet
            assert r.balance == balance
        assert balance >= MIN_BET
        assert f"Current balance: ${balance}\nCurrent round: {len(played) + 1}\n" in text


def test_groups_share_format_length_and_luck_and_differ_in_bets():
    cautious, chasing = (histories(300, 0, policy=p) for p in ("cautious", "chasing"))
    for a, b in zip(cautious, chasing, strict=True):
        assert [r.win for r in rounds(a)] == [r.win for r in rounds(b)]
        assert re.sub(r"\$\d+", "$", a) == re.sub(r"\$\d+", "$", b)
    bets = [[r.bet for text in group for r in rounds(text)] for group in (cautious, chasing)]
    assert max(bets[0]) <= 10
    assert sum(bets[1]) / len(bets[1]) > 2 * sum(bets[0]) / len(bets[0])
    after_loss = [(x, y) for text in chasing for x, y in zip(rounds(text), rounds(text)[1:], strict=False) if not x.win]
    assert all(y.bet == min(2 * x.bet, MAX_BET, x.balance) for x, y in after_loss)


def test_a_smaller_number_is_a_prefix_and_the_seed_matters():
    many = histories(50, 1, policy="chasing")
    assert histories(20, 1, policy="chasing") == many[:20]
    assert histories(20, 2, policy="chasing") != many[:20]


def test_the_option_is_free_to_choose():
    fixed, variable = (histories(5, 0, policy="cautious", option=o) for o in ("fixed", "variable"))
    assert all("1) Bet $10\n" in text for text in fixed)
    assert [text.replace(OPTIONS["fixed"], OPTIONS["variable"]) for text in fixed] == variable


def test_lengths_are_as_asked():
    lengths = Counter(len(rounds(t)) for t in histories(60, 0, policy="chasing", min_rounds=4, max_rounds=5))
    assert set(lengths) == {4, 5}


def test_more_games_than_there_are():
    with pytest.raises(BadInput, match="different games"):
        histories(500, 0, policy="cautious", min_rounds=1, max_rounds=1)


@pytest.mark.parametrize("wrong", [{"policy": "bold"}, {"option": "all"}, {"min_rounds": 5, "max_rounds": 4}])
def test_wrong_parameters(wrong):
    with pytest.raises(BadInput):
        histories(3, 0, **({"policy": "cautious"} | wrong))


def test_another_process_writes_the_same_histories():
    code = "from tasks.patching.slot_machine import histories; print(repr(histories(7, 5, policy='chasing')))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": s}, capture_output=True, text=True, check=True
        ).stdout
        for s in ("1", "2")
    }
    assert outputs == {repr(histories(7, 5, policy="chasing")) + "\n"}
