"""nnsight on transformers: each trial as an invoke of its own, as its documentation batches different interventions;
and all trials as one invoke, whose body edits the rows of the batch."""

from __future__ import annotations

import torch
from nnsight import TransformersModel

from tests.benchmarks.peers.job import Job, Way, main


def ways_of(job: Job) -> dict[str, Way]:
    model = TransformersModel(job.model, task="text-generation", dtype=getattr(torch, job.dtype), dispatch=True)
    settings = {"do_sample": False, "min_new_tokens": job.new_tokens, "max_new_tokens": job.new_tokens}
    layers, edits, n_steps = model.model.layers, job.edits, job.new_tokens
    groups = list(edits.of_layers())

    def invoke_per_trial(prompt: list[int]) -> list[list[int]]:
        ids = job.batch(prompt)
        with torch.inference_mode(), model.generate(**settings) as tracer:
            for trial in range(job.n):
                with tracer.invoke(ids[trial]):
                    block = layers[int(edits.layer[trial])]
                    for _ in tracer.iter[:n_steps]:
                        block.output[:, -1] = edits.apply(block.output[:, -1], trial)
            with tracer.invoke():
                out = tracer.result.save()
        return out[:, len(prompt) :].tolist()

    def one_invoke(prompt: list[int]) -> list[list[int]]:
        ids = job.batch(prompt)
        with torch.inference_mode(), model.generate(ids, **settings) as tracer:
            for _ in tracer.iter[:n_steps]:
                for layer, trials in groups:
                    hidden = layers[layer].output
                    hidden[trials, -1] = edits.apply(hidden[trials, -1], trials)
            out = tracer.result.save()
        return out[:, len(prompt) :].tolist()

    return {"an invoke per trial": invoke_per_trial, "one invoke": one_invoke}


if __name__ == "__main__":
    main(ways_of, "nnsight", "torch", "transformers")
