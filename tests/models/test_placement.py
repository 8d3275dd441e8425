"""Models that are not in one place: split by accelerate, with parts on disk, they give what the whole model gives."""

import pytest
import torch
from peft import LoraConfig

from tasks.engines.bank import Bank
from tasks.engines.interface import Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.errors import BadInput
from tasks.models.batching import residuals_at_last_token
from tasks.models.load import load
from tasks.models.placement import place, placement
from tasks.models.sources import model_source
from tasks.models.spec import ModelRef
from tests.engines.cases import check, random_case
from tests.engines.conftest import random_sae
from tests.engines.reference import Reference
from tests.models.test_adapter import save_adapter
from tests.models.tiny import save_tiny_model, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("cache")
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "mistral", "gpt2")
SEQUENCES = [(1, 20, 30, 40, 50), (7,), (9, 8, 7, 6, 5, 4, 3, 30, 31, 32, 33, 34)]


def parts(architecture: str) -> list[str]:
    """Names of the modules beside the blocks, and of the blocks."""
    model = tiny_model(architecture)
    stack_name, stack = next((n, m) for n, m in model.named_children() if n in ("model", "transformer"))
    names = [n for n, _ in model.named_children() if n != stack_name]
    for name, child in stack.named_children():
        blocks = isinstance(child, torch.nn.ModuleList)
        names += [f"{stack_name}.{name}.{i}" for i in range(len(child))] if blocks else [f"{stack_name}.{name}"]
    return names


def on_disk(architecture: str) -> dict[str, str]:
    """Blocks 1 and 2 and the final norm on disk; the rest in memory."""
    stored = (".1", ".2", ".norm", ".ln_f")
    return {name: "disk" if name.endswith(stored) else "cpu" for name in parts(architecture)}


def load_split(folder, architecture, **kwargs):
    return load(ModelRef(source=str(folder), **kwargs), on_disk(architecture))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_residuals_of_a_split_model_are_those_of_the_whole(architecture, tmp_path):
    folder = save_tiny_model(tmp_path / "model", architecture)
    whole, split = load(ModelRef(source=str(folder))), load_split(folder, architecture)
    assert {p.device.type for p in split.model.parameters()} == {"cpu", "meta"}
    assert split.device == torch.device("cpu")
    assert split.layout.devices == [torch.device("cpu")] * 4
    expected, found = (residuals_at_last_token(loaded, SEQUENCES) for loaded in (whole, split))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_torch_engine_on_a_split_model_equals_the_naive_loop_on_the_whole(architecture, tmp_path):
    folder = save_tiny_model(tmp_path / "model", architecture)
    whole, split = load(ModelRef(source=str(folder))), load_split(folder, architecture)
    saes = {layer: random_sae(layer, whole.layout.d_model, "jumprelu") for layer in (0, 1, 3)}
    bank = Bank.build(saes.__getitem__, [(0, 5), (1, 17), (1, 40), (3, 9)]).with_random_controls(seed=2)
    case = random_case(5, bank, whole.layout.n_layers, whole.model.config.vocab_size, n_trials=(14,))
    reference = Reference(whole.model, whole.layout, bank, saes)
    make = lambda case: TorchEngine(split, bank, saes.__getitem__, case.batch_size, case.end_tokens)  # noqa: E731
    assert check(make, case, reference).trials == 14


@pytest.mark.parametrize(("dtype", "head"), [("float32", "cpu"), ("float32", "disk"), ("bfloat16", "cpu")])
def test_the_torch_engine_leaves_a_split_model_as_it_was(dtype, head, tiny_folder):
    ref = ModelRef(source=str(tiny_folder), dtype=dtype)
    whole, split = load(ref), load(ref, on_disk("llama") | {"lm_head": head})
    trials = [Trial(i, SEQUENCES[0], seed=i, max_new_tokens=8) for i in range(4)]
    tokens = [
        {r.id: r.tokens for r in TorchEngine(loaded, end_tokens=()).generate(trials)}
        for loaded in (whole, split, split)
    ]
    assert tokens[0] == tokens[1] == tokens[2]
    ids = torch.tensor([SEQUENCES[0]])
    assert torch.equal(split.model(ids).logits, whole.model(ids).logits)


def test_an_adapter_of_a_split_model_is_merged_first(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=4, task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path / "adapter", load(ModelRef(source=str(folder))).model, config)
    split = load_split(folder, "llama", adapter=str(adapter))
    whole = load(ModelRef(source=str(folder), adapter=str(adapter)))
    ids = torch.tensor([SEQUENCES[0]])
    assert torch.equal(split.model(ids).logits, whole.model(ids).logits)
    assert not torch.equal(whole.model(ids).logits, load(ModelRef(source=str(folder))).model(ids).logits)


@pytest.fixture
def source(tiny_folder):
    return model_source(ModelRef(source=str(tiny_folder)))


@pytest.mark.parametrize(
    ("architecture", "depth"),
    [
        ("llama", "num_hidden_layers"),
        ("gemma2", "num_hidden_layers"),
        ("gpt2", "n_layer"),
        ("opt", "num_hidden_layers"),
    ],
)
def test_gpus_get_equal_runs_of_blocks(source, architecture, depth):
    deep = {depth: 36}
    model = tiny_model(architecture, **deep)
    size = sum(p.nbytes for p in model.parameters())
    where = place(source, tiny_config(architecture, **deep), torch.float32, dict.fromkeys(range(3), size))
    [path] = {name.rpartition(".")[0] for name in where if name.rpartition(".")[2].isdecimal()}
    devices = [where[f"{path}.{i}"] for i in range(36)]
    assert devices == sorted(devices)
    assert all(9 <= devices.count(device) <= 15 for device in range(3))
    assert where[next(name for name in where if "emb" in name or "wte" in name)] == 0


def test_a_model_that_fits_one_gpu_stays_there(source):
    assert place(source, tiny_config("llama"), torch.float32, {0: 10**9, 1: 10**9}) == {"": torch.device("cuda", 0)}


def test_a_model_that_fits_nowhere_is_refused(source):
    with pytest.raises(BadInput, match=r"its weights take .* GiB in bfloat16, and the 2 GPUs"):
        place(source, tiny_config("llama"), torch.bfloat16, {0: 100_000, 1: 100_000})


@pytest.mark.parametrize("device", ["cpu", "cuda:1", torch.device("cuda", 0)])
def test_a_named_device_is_taken(source, device):
    assert placement(source, tiny_config("llama"), torch.float32, device) == {"": torch.device(device)}
