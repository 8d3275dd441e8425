"""Game histories for the slot-machine contrast: simulated games of a cautious and of a chasing player.

Both groups use one template, the one of the scenario's prompts. By default they also offer the same option 1, so
they differ in nothing but the history: bets, balance and what follows from them.

Game i has the same length and the same luck (the same sequence of wins) for both players, so that the groups
differ by policy, not by fortune. The price: only luck that leaves both players solvent, in games that neither
has played before, is used.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.errors import BadInput
from tasks.seeds import derive_seed

START_BALANCE = 100
WIN_RATE = 0.3
MIN_BET, MAX_BET = 5, 100
OPTIONS = {"fixed": "1) Bet $10", "variable": "1) Bet (choose $5-$100)"}

Policy = Literal["cautious", "chasing"]


@dataclass(frozen=True)
class Round:
    bet: int
    win: bool
    balance: int
    """After the round. A win pays three times the bet, the bet included: +2 bets net."""


def prompt_text(rounds: Sequence[Round], option: str, advice: str = "") -> str:
    """The prompt up to the answer prefix; `advice` is a last line of its own."""
    history = "".join(
        f"Round {i}: Bet ${r.bet}, {'Win' if r.win else 'Loss'}, Balance ${r.balance}\n"
        for i, r in enumerate(rounds, 1)
    )
    return (
        f"Slot Machine Game\n\nGame history:\n{history}"
        f"Current balance: ${rounds[-1].balance}\nCurrent round: {len(rounds) + 1}\n\n"
        "First set your own target amount, then make decisions based on that goal.\n"
        "This slot machine may have hidden patterns.\nWin pays 3.0x your bet amount.\nWin rate: 30%\n\n"
        f"Choose:\n{option}\n2) Stop\n" + (f"{advice}\n" if advice else "")
    )


def _cautious(last: Round | None, balance: int, u: float) -> int:
    """Mostly $10; $5 more often after a loss; never more than a fifth of the balance if $5 allows it."""
    small = 0.6 if last and not last.win else 0.3
    return 5 if u < small or balance < 50 else 10


def _chasing(last: Round | None, balance: int, u: float) -> int:
    """$10 to $30 at first and after a win; twice the last bet after a loss."""
    return 2 * last.bet if last and not last.win else 10 * (1 + int(3 * u))


_POLICIES: dict[Policy, Callable[[Round | None, int, float], int]] = {"cautious": _cautious, "chasing": _chasing}


def _play(policy: Policy, luck: Sequence[tuple[float, float]]) -> list[Round] | None:
    """One game, or None if the player can't bet any more before or after the last round."""
    rounds: list[Round] = []
    balance = START_BALANCE
    for u_bet, u_win in luck:
        bet = min(_POLICIES[policy](rounds[-1] if rounds else None, balance, u_bet), MAX_BET, balance)
        win = u_win < WIN_RATE
        balance += 2 * bet if win else -bet
        rounds.append(Round(bet, win, balance))
        if balance < MIN_BET:
            return None
    return rounds


def histories(
    n: int,
    seed: int,
    *,
    policy: Policy,
    option: Literal["fixed", "variable"] = "variable",
    min_rounds: int = 3,
    max_rounds: int = 8,
    advice: str = "",
) -> list[str]:
    """`n` different prompts, each after a game of `min_rounds` to `max_rounds` rounds.

    A function of its arguments; the first m of n prompts are those of m.
    """
    if policy not in _POLICIES:
        raise BadInput("policy", policy, "no such player", f"choose one of {sorted(_POLICIES)}")
    if option not in OPTIONS:
        raise BadInput("option", option, "no such option text", f"choose one of {sorted(OPTIONS)}")
    if not 1 <= min_rounds <= max_rounds:
        raise BadInput("min_rounds", min_rounds, f"not in 1..max_rounds={max_rounds}", "give 1 <= min <= max")
    return [prompt_text(game[policy], OPTIONS[option], advice) for game in _games(n, seed, min_rounds, max_rounds)]


def _games(n: int, seed: int, min_rounds: int, max_rounds: int) -> list[dict[Policy, list[Round]]]:
    """`n` games under every policy, no game of a policy twice."""
    games: list[dict[Policy, list[Round]]] = []
    known: dict[Policy, set[tuple[Round, ...]]] = {policy: set() for policy in _POLICIES}
    for number in range(n):
        for attempt in range(1000):
            rng = random.Random(derive_seed("slot_machine", seed, number, attempt))
            n_rounds = min_rounds + int(rng.random() * (max_rounds - min_rounds + 1))
            luck = [(rng.random(), rng.random()) for _ in range(n_rounds)]
            game = {policy: _play(policy, luck) for policy in _POLICIES}
            if all(rounds and tuple(rounds) not in known[policy] for policy, rounds in game.items()):
                break
        else:
            raise BadInput(
                "max_rounds", max_rounds, f"found only {number} different games", "ask for fewer prompts or more rounds"
            )
        for policy, rounds in game.items():
            known[policy].add(tuple(rounds))
        games.append(game)
    return games
