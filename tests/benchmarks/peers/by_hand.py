"""transformers and nothing else: what a careful user writes by hand. One batch, one hook per layer, a row per trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tests.benchmarks.peers.job import Job, Way, main


def ways_of(job: Job) -> dict[str, Way]:
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).eval()

    @contextmanager
    def hooks() -> Iterator[None]:
        """At the last token of each pass: the last of the prompt, then each generated one."""

        def hook_of(trials):
            def hook(module, args, output):
                output[trials, -1] = job.edits.apply(output[trials, -1], trials)
                return output

            return hook

        handles = [
            model.model.layers[layer].register_forward_hook(hook_of(trials)) for layer, trials in job.edits.of_layers()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def generate(prompt: list[int], **cache) -> list[list[int]]:
        ids = job.batch(prompt)
        with hooks():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=job.new_tokens,
                max_new_tokens=job.new_tokens,
                **cache,
            )
        return out[:, ids.shape[1] :].tolist()

    @torch.inference_mode()
    def prefix_once(prompt: list[int]) -> list[list[int]]:
        cache = DynamicCache(config=model.config)
        model(torch.tensor([prompt[:-1]]), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(job.n)
        return generate(prompt, past_key_values=cache)

    return {"one batch": generate, "one batch, the prompt computed once": prefix_once}


if __name__ == "__main__":
    main(ways_of, "torch", "transformers")
