"""Which engine samples a study's generations: what was asked for, checked, and what `auto` comes to.

Engines agree up to rounding only, so the choice is part of the specs and settled before they are written.
"""

from __future__ import annotations

from prefect import get_run_logger

from flows.execution import Execution
from tasks.engines.choice import EngineChoice, EngineName, check_model
from tasks.errors import BadInput
from tasks.models.spec import ModelInfo
from tasks.patching.spec import StudySettings

FIELD = "trials.engine"


def require(engine: EngineChoice, execution: Execution) -> None:
    """Refuse an engine whose environment is not at hand, before anything is run.

    Raises:
        BadInput: naming the parameter and the remedy.
    """
    if engine != "auto":
        launcher = execution.make_launcher()
        device = launcher.slots(device=execution.device, count=1, threads=None).slots[0].device
        try:
            launcher.check_environment(engine, device)
        except BadInput as error:
            raise BadInput(FIELD, engine, error.problem, f"{error.remedy}, or choose 'torch'") from error


def choose(engine: EngineChoice, model: ModelInfo, execution: Execution) -> tuple[EngineName, str]:
    """The engine to use, and why. `auto` is vllm on GPUs where nothing speaks against it, else torch.

    Raises:
        BadInput: the engine that was asked for can't run here, or not this model.
    """
    if engine != "auto":
        require(engine, execution)
        check_model(engine, model)
        return engine, "as asked"
    pool = execution.make_launcher().slots(device=execution.device, count=1, threads=None)
    if pool.slots[0].device != "cuda":
        return "torch", "no GPU"
    try:
        require("vllm", execution)
        check_model("vllm", model)
    except BadInput as error:
        return "torch", f"vllm can't: {error.problem}"
    return "vllm", "on GPUs"


def with_engine(settings: StudySettings, model: ModelInfo, execution: Execution) -> StudySettings:
    """The study with its engine settled; the log says which. Raises like ``choose``."""
    engine, reason = choose(settings.trials.engine, model, execution)
    get_run_logger().info("engine of the trials: %s (%s)", engine, reason)
    return settings.with_engine(engine)
