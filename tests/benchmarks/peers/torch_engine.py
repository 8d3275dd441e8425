"""This project's torch engine, in the same harness as its peers."""

from __future__ import annotations

from tasks.engines.torch_engine import TorchEngine
from tasks.models.load import load
from tasks.models.spec import ModelRef
from tests.benchmarks.peers.job import Job, Way, main
from tests.benchmarks.peers.trials import bank_of, trials_of


def ways_of(job: Job) -> dict[str, Way]:
    loaded = load(ModelRef(source=job.model, dtype=job.dtype))
    engine = TorchEngine(loaded, bank_of(job), end_tokens=())

    def generate(prompt: list[int]) -> list[list[int]]:
        trials = trials_of(job, prompt)
        found = {result.id: list(result.tokens) for result in engine.generate(trials)}
        return [found[trial.id] for trial in trials]

    return {"torch engine": generate}


if __name__ == "__main__":
    main(ways_of, "torch", "transformers")
