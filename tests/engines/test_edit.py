"""The edit operation: both implementations against the formula, one token at a time.

The Triton kernel runs where a GPU is, and otherwise in Triton's interpreter, which executes the same program on the
CPU.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits, edit_, edit_reference_
from tests.engines.conftest import random_sae
from tests.requirements import need

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D = 40
N = 13
LAYERS = (0, 2, 3)


def reference(hidden, residual, layer, edits, bank, found) -> None:
    edit_reference_(hidden, residual, layer, edits, bank, found, None)


def kernel(hidden, residual, layer, edits, bank, found) -> None:
    need("triton", find_spec("triton") is not None, "pip install triton")
    from tasks.engines.edit_kernel import edit_rows_

    edit_rows_(hidden, residual, layer, edits, bank, found)


IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [reference, kernel])


@pytest.fixture(scope="module")
def bank() -> Bank:
    saes = {layer: random_sae(layer, D, "jumprelu") for layer in LAYERS}
    features = [(layer, feature) for layer in LAYERS for feature in (1, 40, 95)]
    return Bank.build(saes.__getitem__, features).with_random_controls(seed=3).to(DEVICE)


def random_edits(bank: Bank, seed: int, capacity: int = N + 5) -> TokenEdits:
    """About a third of the tokens have no edit; the buffers are longer than the pass."""
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(-len(bank) // 2, len(bank), (N,), generator=g).clamp(min=-1)
    edits = TokenEdits.empty(capacity, DEVICE)
    edits.row.fill_(1)
    edits.layer.fill_(LAYERS[0])  # what an earlier, longer pass may have left
    plain = torch.zeros(N, dtype=torch.bool)
    edits.fill(bank, row.to(DEVICE), (3 * torch.randn(N, generator=g)).to(DEVICE), plain.to(DEVICE))
    return edits


def stream(dtype: torch.dtype, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(N, D, generator=g)).to(DEVICE, dtype)


def by_hand(hidden: Tensor, residual: Tensor | None, layer: int, edits: TokenEdits, bank: Bank):
    """The formula in float64: (what hidden becomes, tokens edited, f, relative delta)."""
    new, touched, before, size = hidden.double(), [], [], []
    for t in range(N):
        if int(edits.layer[t]) != layer:
            continue
        row = int(edits.row[t])
        h = hidden[t].double() + (0 if residual is None else residual[t].double())
        pre = h @ bank.u[row].double() + bank.b[row].double()
        f = pre if pre > bank.theta[row] else torch.zeros_like(pre)
        change = (edits.value[t].double() - f) * bank.w[row].double()
        new[t] = hidden[t].double() + change
        touched.append(t)
        before.append(float(f))
        size.append(float(change.norm() / h.norm()))
    return new, touched, before, size


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [False, True], ids=["stream", "hidden + residual"])
def test_equals_the_formula(implementation, dtype, split, bank):
    edits, found = random_edits(bank, seed=1), Found.empty(N + 5, DEVICE)
    hidden = stream(dtype, seed=2)
    residual = stream(dtype, seed=3) if split else None
    for layer in (*LAYERS, 1):
        before = hidden.clone()
        expected, touched, f, size = by_hand(before, residual, layer, edits, bank)
        found.clear()
        implementation(hidden, residual, layer, edits, bank, found)
        assert (len(touched) > 0) == (layer != 1)
        untouched = [t for t in range(N) if t not in touched]
        assert torch.equal(hidden[untouched], before[untouched])
        tolerance = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
        torch.testing.assert_close(hidden.double(), expected, rtol=tolerance, atol=1e-5)
        assert found.applied.nonzero().flatten().tolist() == touched
        assert found.applied.sum() == len(touched)
        torch.testing.assert_close(found.f[touched].cpu().double(), torch.tensor(f).double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.relative_delta[touched].cpu().double(), torch.tensor(size).double(), rtol=1e-5, atol=1e-6
        )
        assert found.f[untouched].isnan().all()
        assert found.relative_delta[untouched].isnan().all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split", [False, True], ids=["stream", "hidden + residual"])
def test_setting_what_was_found_changes_no_bit(implementation, dtype, split, bank):
    edits, found = random_edits(bank, seed=4), Found.empty(N + 5, DEVICE)
    residual = stream(dtype, seed=6) if split else None
    hidden = stream(dtype, seed=5)
    for layer in LAYERS:
        implementation(hidden.clone(), residual, layer, edits, bank, found)
    edits.value[:N] = found.f[:N]
    same = hidden.clone()
    found.clear()
    for layer in LAYERS:
        implementation(same, residual, layer, edits, bank, found)
    assert found.applied.sum() > 5
    assert torch.equal(same, hidden)
    assert (found.relative_delta[found.applied == 1] == 0).all()


@IMPLEMENTATIONS
def test_a_threshold_is_strict(implementation, bank):
    """An activation of exactly theta is off, one just above it is on."""
    exact = Bank(
        layer=torch.tensor([0, 0], device=DEVICE),
        feature=torch.tensor([0, 0], device=DEVICE),
        kind=torch.zeros(2, dtype=torch.int64, device=DEVICE),
        full_encode=torch.zeros(2, dtype=torch.bool, device=DEVICE),
        u=torch.eye(D, device=DEVICE)[:1].expand(2, D).contiguous(),
        b=torch.tensor([0.0, 0.25], device=DEVICE),
        theta=torch.tensor([1.5, 1.5], device=DEVICE),
        w=torch.ones(2, D, device=DEVICE),
    )
    edits, found = TokenEdits.empty(2, DEVICE), Found.empty(2, DEVICE)
    plain = torch.zeros(2, dtype=torch.bool, device=DEVICE)
    edits.fill(exact, torch.tensor([0, 1], device=DEVICE), torch.zeros(2, device=DEVICE), plain)
    implementation(torch.full((2, D), 1.5, device=DEVICE), None, 0, edits, exact, found)
    assert found.f.tolist() == [0.0, 1.75]


def test_fewer_tokens_than_buffers_and_more_dimensions(bank):
    edits, found = random_edits(bank, seed=7), Found.empty(N + 5, DEVICE)
    flat, shaped = stream(torch.float32, seed=8)[:12], stream(torch.float32, seed=8)[:12].view(3, 4, D)
    for layer in LAYERS:
        edit_(flat, None, layer, edits, bank, found)
        edit_(shaped, None, layer, edits, bank, found)
    assert torch.equal(shaped.view(12, D), flat)
    assert not torch.equal(flat, stream(torch.float32, seed=8)[:12])


def test_a_dictionary_that_is_missing_is_named(bank):
    edits, found = TokenEdits.empty(1, DEVICE), Found.empty(1, DEVICE)
    yes = torch.ones(1, dtype=torch.bool, device=DEVICE)
    edits.fill(bank, torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.zeros(1, device=DEVICE), yes)
    with pytest.raises(ValueError, match="layer 0: mode 'reconstruct' and TopK gates need the layer's SAE"):
        edit_reference_(torch.ones(1, D, device=DEVICE), None, 0, edits, bank, found, None)
