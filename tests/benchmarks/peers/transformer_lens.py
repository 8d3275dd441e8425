"""TransformerLens: its bridge's own generate loop, one batch, a hook per layer that edits the rows of its trials."""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from tests.benchmarks.peers.job import Job, Way, main


def ways_of(job: Job) -> dict[str, Way]:
    model = TransformerBridge.boot_transformers(job.model, dtype=getattr(torch, job.dtype))

    def hook_of(trials):
        def hook(hidden, hook):
            hidden[trials, -1] = job.edits.apply(hidden[trials, -1], trials)
            return hidden

        return hook

    hooks = [(f"blocks.{layer}.hook_out", hook_of(trials)) for layer, trials in job.edits.of_layers()]

    @torch.inference_mode()
    def one_batch(prompt: list[int]) -> list[list[int]]:
        with model.hooks(fwd_hooks=hooks):
            out = model.generate(
                job.batch(prompt),
                max_new_tokens=job.new_tokens,
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return out[:, len(prompt) :].tolist()

    return {"one batch": one_batch}


if __name__ == "__main__":
    main(ways_of, "transformer-lens", "torch", "transformers")
