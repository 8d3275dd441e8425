import pytest
import torch

from tasks.errors import BadInput
from tasks.models.batching import pad, residuals_at_last_token, truncated
from tasks.models.layout import Layout, block_output
from tasks.models.load import LoadedModel
from tasks.models.memory import is_out_of_memory
from tasks.models.spec import ModelRef
from tests.models.tiny import ALL_ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model, tiny_tokenizer

# the longest is longer than the sliding windows (8), and shorter ones need more pads than a window holds
LENGTHS = (23, 1, 6, 14, 23, 9)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CLOSE_BY_NAME = {
    "qwen3_next": {"rtol": 1e-3, "atol": 2e-4},  # its recurrence carries rounding along
    "gpt_oss": {"rtol": 1e-4, "atol": 3e-5},  # its experts add up many small products, in an order of the CPU's choice
}


def sequences(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 120, (n,), generator=generator).tolist() for n in lengths]


def loaded(name="llama", **overrides):
    model = tiny_model(name, **overrides)
    return LoadedModel(model, tiny_tokenizer(), Layout.of(model), ModelRef(source="tiny"))


def logits_and_residuals(model, inputs):
    """Logits [n, T, V] and the blocks' outputs [n, T, layers, d]."""
    captured = []
    hooks = [
        b.register_forward_hook(lambda *call: captured.append(block_output(call[2]))) for b in Layout.of(model).blocks
    ]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits, torch.stack(captured, dim=2)


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_padding_on_either_side_changes_nothing(name):
    model = tiny_model(name)
    texts = sequences()
    alone = [logits_and_residuals(model, {"input_ids": torch.tensor([s])}) for s in texts]
    for side in ("left", "right"):
        batch = pad(texts, pad_id=0, side=side)
        logits, residuals = logits_and_residuals(model, batch.inputs(model))
        for row, (alone_logits, alone_residuals) in enumerate(alone):
            real = batch.attention_mask[row].bool()
            close = CLOSE_BY_NAME.get(name, CLOSE)
            torch.testing.assert_close(logits[row, real], alone_logits[0], **close)
            torch.testing.assert_close(residuals[row, real], alone_residuals[0], **close)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neo", "gpt_bigcode"])
def test_absolute_positions_matter_so_the_test_above_means_something(name):
    model = tiny_model(name)
    batch = pad(sequences(), pad_id=0)
    right = batch.inputs(model)
    shifted = right | {"position_ids": torch.arange(right["input_ids"].shape[1]).expand_as(right["input_ids"])}
    with torch.no_grad():
        assert (model(**right).logits - model(**shifted).logits)[1:, -1].abs().max() > 0.1


@pytest.mark.parametrize("pad_id", [0, 50])
def test_which_token_pads_does_not_matter(pad_id):
    model = tiny_model("llama")
    a, b = pad(sequences(), 0), pad(sequences(), pad_id)
    with torch.no_grad():
        assert torch.equal(
            model(**a.inputs(model)).logits[:, -1],
            model(**b.inputs(model)).logits[:, -1],
        )


def test_pad_lays_out_ids_mask_and_positions():
    left = pad([[5, 6, 7], [8]], pad_id=9)
    assert left.input_ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    right = pad([[5, 6, 7], [8]], pad_id=9, side="right")
    assert right.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("bad", [[], [[1, 2], []]])
def test_pad_refuses_nothing(bad):
    with pytest.raises(BadInput, match="sequences"):
        pad(bad, pad_id=0)


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
@pytest.mark.parametrize("layers", [(2, 0), (N_LAYERS - 1,)])
def test_last_token_residuals_equal_one_plain_pass_per_sequence(name, layers):
    lm = loaded(name)
    texts = sequences()
    got = residuals_at_last_token(lm, texts, layers, batch_size=4)
    assert got.shape == (len(texts), len(layers), D_MODEL)
    assert got.dtype == torch.float32
    for row, text in zip(got, texts, strict=True):
        _, residuals = logits_and_residuals(lm.model, {"input_ids": torch.tensor([text])})
        torch.testing.assert_close(row, residuals[0, -1, list(layers)], **CLOSE_BY_NAME.get(name, CLOSE))


def test_all_layers_are_the_default():
    lm = loaded()
    assert torch.equal(
        residuals_at_last_token(lm, sequences()), residuals_at_last_token(lm, sequences(), range(N_LAYERS))
    )


@pytest.mark.parametrize("layers", [(), (N_LAYERS,), (-1,)])
def test_layers_outside_the_model_are_refused(layers):
    with pytest.raises(BadInput, match=r"layers 0\.\.3"):
        residuals_at_last_token(loaded(), sequences(), layers)


def test_blocks_above_the_deepest_layer_do_not_run_and_are_restored():
    lm = loaded()
    ran = []
    for i, block in enumerate(lm.layout.blocks):
        block.register_forward_hook(lambda *call, i=i: ran.append(i))
    residuals_at_last_token(lm, sequences((3,)), (1,))
    assert ran == [0, 1]
    assert lm.model.model.layers is lm.layout.blocks
    lm.model(torch.tensor([[1, 2]]))
    assert ran == [0, 1, 0, 1, 2, 3]


def test_blocks_are_restored_after_an_error():
    lm = loaded()
    with pytest.raises(RuntimeError, match="inside"), truncated(lm.layout, 1):
        raise RuntimeError("inside")
    assert lm.model.model.layers is lm.layout.blocks
    assert lm.model.config.num_hidden_layers == N_LAYERS


def fail_above(lm, rows, error):
    """Make the model raise `error` for batches of more than `rows` rows; returns the sizes it saw."""
    sizes = []

    def check(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > rows:
            raise error

    lm.layout.stack.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


def test_the_batch_is_halved_when_memory_runs_out():
    lm = loaded()
    want = residuals_at_last_token(lm, sequences(), batch_size=3)
    sizes = fail_above(lm, 3, torch.OutOfMemoryError("out of memory"))
    assert torch.equal(residuals_at_last_token(lm, sequences(), batch_size=6), want)
    assert sizes == [6, 3, 3]


def test_real_cpu_allocation_failures_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_memory_for_not_even_one_row_and_other_errors_are_raised():
    lm = loaded()
    fail_above(lm, 0, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        residuals_at_last_token(lm, sequences())
    lm = loaded()
    fail_above(lm, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        residuals_at_last_token(lm, sequences())
