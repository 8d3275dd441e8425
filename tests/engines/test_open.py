"""What an engine must be opened for."""

from __future__ import annotations

import pytest
import torch

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Edit
from tasks.engines.open import dictionary_layers


@pytest.fixture
def bank() -> Bank:
    """Rows on layers 1, 1, 4, 7; the gate of the last needs every feature of its SAE."""
    n, d = 4, 3
    return Bank(
        layer=torch.tensor([1, 1, 4, 7]),
        feature=torch.arange(n),
        kind=torch.zeros(n, dtype=torch.int64),
        full_encode=torch.tensor([False, False, False, True]),
        u=torch.zeros(n, d),
        b=torch.zeros(n),
        theta=torch.zeros(n),
        w=torch.zeros(n, d),
    )


@pytest.mark.parametrize(
    ("edits", "captured", "layers"),
    [
        ([], [], []),
        ([Edit(0, 1.0), Edit(2, 1.0)], [0, 1, 2], []),
        ([Edit(0, 1.0), Edit(2, None, mode="reconstruct")], [], [4]),
        ([Edit(3, 1.0), Edit(1, 1.0, mode="reconstruct")], [], [1, 7]),
        ([Edit(0, 1.0)], [3], [7]),
    ],
)
def test_whole_saes_are_for_reconstructions_and_gates_that_need_them(
    bank: Bank, edits: list[Edit], captured: list[int], layers: list[int]
) -> None:
    assert dictionary_layers(bank, edits, Capture(rows=captured)) == layers
