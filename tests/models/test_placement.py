"""Models that are not in one place: split by accelerate, with parts on disk, they give what the whole model gives."""

import gc

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tasks.engines.bank import Bank
from tasks.engines.interface import Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.errors import BadInput
from tasks.models.batching import residuals_at_last_token
from tasks.models.experts import moe_blocks, routing
from tasks.models.load import load
from tasks.models.placement import SHARE, place, placement, spread
from tasks.models.points import norm_points, residual_points, rewriting, watching
from tasks.models.sources import model_source
from tasks.models.spec import ModelRef
from tasks.places.cache import cache_root
from tests.engines.cases import check, random_case
from tests.engines.conftest import random_sae
from tests.engines.reference import Reference
from tests.models.test_adapter import save_adapter
from tests.models.tiny import ALL_ARCHITECTURES, by_layout, save_tiny_model, tiny_config, tiny_model

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


def bytes_of(model) -> int:
    return sum(p.nbytes for p in model.parameters())


def observed(loaded, ids):
    """Logits, every point's tensor, and the choices of every router."""
    points = norm_points(loaded.model, loaded.layout) + residual_points(loaded.layout)
    blocks, seen = moe_blocks(loaded.layout), []

    def see(routing):
        seen.extend([routing.experts.clone(), routing.weights.clone(), routing.routed_output.clone()])

    with watching(points, lambda i, x: seen.append(x.clone())), routing(blocks, see):
        logits = loaded.model(ids, use_cache=False).logits
    with rewriting(points[:3], lambda i, x: x * 0.5):
        changed = loaded.model(ids, use_cache=False).logits
    return [logits, changed, *seen]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.7, 0.1])
@pytest.mark.parametrize("name", by_layout(ALL_ARCHITECTURES))
def test_a_model_with_little_memory_is_the_whole_model_bit_for_bit(name, share, tmp_path):
    ref = ModelRef(source=str(save_tiny_model(tmp_path / "model", name)))
    whole = load(ref)
    config, ids = whole.model.config, torch.tensor([SEQUENCES[0], SEQUENCES[2][:5]])
    where = place(model_source(ref), config, torch.float32, {}, int(bytes_of(whole.model) * share))
    assert set(where.values()) == ({"cpu", "disk"} if share > 0.5 else {"disk"})
    split = load(ref, where)
    assert split.device == torch.device("cpu")
    assert split.layout.devices == [torch.device("cpu")] * whole.layout.n_layers
    expected, found = observed(whole, ids), observed(split, ids)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert any(p.device.type == "meta" for p in split.model.parameters())


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss"])
def test_offloading_by_free_memory(name, tmp_path, monkeypatch):
    ref = ModelRef(source=str(save_tiny_model(tmp_path / "model", name)), dtype="bfloat16")
    whole = load(ref, offload=True)
    assert whole.spread.endswith("MiB in memory")
    assert not any(hasattr(m, "_hf_hook") for m in whole.model.modules())
    size = bytes_of(whole.model)
    monkeypatch.setattr("tasks.models.placement.free_bytes", lambda device: size)
    split = load(ref, offload=True)
    assert " in memory, " in split.spread
    assert split.spread.endswith(" on disk")
    ids = torch.tensor([SEQUENCES[0]])
    assert torch.equal(split.model(ids).logits, whole.model(ids).logits)
    assert load(ref).spread == whole.spread


def rewritten() -> list[str]:
    folder = cache_root() / "offloaded"
    return [path.name for path in folder.rglob("*.safetensors")] if folder.exists() else []


def test_weights_on_disk_are_read_from_the_models_own_files(tmp_path):
    """Only experts that the checkpoint keeps one by one are written again, and that goes with the model."""
    for name in ("llama", "gpt2", "gpt_oss", "mixtral"):
        ref = ModelRef(source=str(save_tiny_model(tmp_path / name, name)))
        split = load(ref, place(model_source(ref), tiny_config(name), torch.float32, {}, 1000))
        assert all(".experts." in file for file in rewritten())
        assert bool(rewritten()) == (name == "mixtral")
        del split
        gc.collect()
        assert rewritten() == []


def test_pickled_weights_on_disk(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    ref, ids = ModelRef(source=str(folder)), torch.tensor([SEQUENCES[0]])
    expected = load(ref).model(ids).logits
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    split = load(ref, place(model_source(ref), tiny_config("llama"), torch.float32, {}, 1000))
    assert torch.equal(split.model(ids).logits, expected)


def test_a_damaged_model_leaves_nothing_behind(tmp_path):
    folder = save_tiny_model(tmp_path / "model", "mixtral")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.3.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ref = ModelRef(source=str(folder))
    with pytest.raises(BadInput, match="lacks 1 of the model's weights"):
        load(ref, place(model_source(ref), tiny_config("mixtral"), torch.float32, {}, 1000))
    assert rewritten() == []


def test_a_full_disk_is_said(small_disk, monkeypatch, tmp_path):
    monkeypatch.setenv("TOMOGRAPH_CACHE", str(small_disk))
    ref = ModelRef(source=str(save_tiny_model(tmp_path / "model", "mixtral", intermediate_size=2048)))
    config = load(ref).model.config
    with pytest.raises(BadInput, match=rf"no room in {small_disk}.*TOMOGRAPH_CACHE"):
        load(ref, place(model_source(ref), config, torch.float32, {}, 1000))
    assert rewritten() == []


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "glm4_moe", "qwen3_next"])
def test_gpus_are_filled_first_then_memory_then_disk(source, name):
    deep = {"n_layer" if name == "gpt2" else "num_hidden_layers": 24}
    model = tiny_model(name, **deep)
    size = bytes_of(model)
    free = {0: size / 4 / SHARE, 1: size / 4 / SHARE}
    where = place(source, tiny_config(name, **deep), torch.float32, free, int(size / 4 / SHARE))
    [path] = {part.rpartition(".")[0] for part in where if part.rpartition(".")[2].isdecimal()}
    order = [0, 1, "cpu", "disk"]
    devices = [order.index(where[f"{path}.{i}"]) for i in range(24)]
    assert devices == sorted(devices)
    assert [3 <= devices.count(i) <= 7 for i in range(3)] == [True] * 3
    assert devices.count(3) >= 3
    for i, most in enumerate([size / 4] * 3):
        here = {n for n, device in where.items() if order.index(device) == i}
        parts = [p.nbytes for n, p in model.named_parameters() if any(n == m or n.startswith(f"{m}.") for m in here)]
        assert sum(parts) <= most
    words = spread(model, where)
    assert [word in words for word in ("on 2 GPUs, ", " in memory, ", " on disk")] == [True] * 3


def test_gpus_that_are_enough_take_all_of_it(source):
    config = tiny_config("llama", num_hidden_layers=36)
    size = bytes_of(tiny_model("llama", num_hidden_layers=36))
    plain = place(source, config, torch.float32, {0: size, 1: size})
    assert place(source, config, torch.float32, {0: size, 1: size}, memory=10**9) == plain
    assert place(source, config, torch.float32, {0: 2 * size}, memory=10**9) == {"": torch.device("cuda", 0)}
    assert place(source, config, torch.float32, {}, memory=2 * size) == {"": torch.device("cpu")}
    assert set(plain.values()) == {0, 1}


def test_quantized_weights_take_what_their_files_take(source):
    """A quarter of the bytes: one GPU is enough, where the plain model needs two."""
    config = tiny_config("llama", num_hidden_layers=36)
    size = bytes_of(tiny_model("llama", num_hidden_layers=36))
    free = {0: size * 0.7, 1: size * 0.7}
    assert set(place(source, config, torch.float32, free).values()) == {0, 1}
    assert place(source, config, torch.float32, free, stored=size // 4) == {"": torch.device("cuda", 0)}
    with pytest.raises(BadInput, match="the 2 GPUs"):
        place(source, config, torch.float32, {0: 1000, 1: 1000}, stored=size // 4)


def test_spread_counts_tied_weights_once():
    tied = tiny_model("gpt2")
    assert spread(tied, {"": "cpu"}) == f"{bytes_of(tied) / 2**20:.1f} MiB in memory"
    assert spread(tied, {"": torch.device("cuda", 0)}).endswith("MiB on 1 GPU")
