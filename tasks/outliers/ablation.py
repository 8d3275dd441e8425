"""What a model loses when hidden dimensions are set to zero where blocks read them.

The functional check of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, section 4): outlier dimensions are set to
zero in what enters the blocks' layers, the changed hidden states go on through the model, and its perplexity is
compared with that of the intact model and of one without as many random dimensions. The paper's top-1 softmax
probability is that of attention, layer by layer; here it is the probability of the most probable next token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tasks.engines.head import Float32Head
from tasks.models.batching import pad
from tasks.models.load import LoadedModel
from tasks.models.memory import Halving
from tasks.models.points import norm_points, rewriting

LOGITS = 2**25
"""Logits that exist at once: 128 MiB in float32."""


@dataclass(frozen=True)
class Measured:
    """Of one sequence: sums over its predicted tokens, which are all but the first."""

    tokens: int
    nll: float
    """Negative log likelihood, in nats."""
    top1_probability: float
    """The largest softmax probability."""
    correct: int
    """Times that the most probable token is the real one."""


class Ablation:
    """Measures one model with chosen dimensions at zero.

    `batch_size` is halved, and stays so, when memory runs out.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        self._batches = Halving(batch_size)
        self._loaded = loaded
        self._points = norm_points(loaded.model, loaded.layout)
        self._head = Float32Head(loaded.layout.lm_head)
        vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
        self._rows = max(1, LOGITS // vocabulary)

    @property
    def batch_size(self) -> int:
        return self._batches.size

    @torch.no_grad()
    def measure(
        self,
        sequences: Sequence[Sequence[int]],
        dims: Sequence[int],
        on_batch: Callable[[int], None] = lambda n: None,
    ) -> list[Measured]:
        """One result per sequence, in their order, with `dims` at zero at every point of site norms.

        on_batch: called with how many sequences are done.
        """
        by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
        results: dict[int, Measured] = {}

        def run(rows: Sequence[int]) -> list[Measured]:
            return self._batch([sequences[i] for i in rows], dims)

        for rows, measured in self._batches.over(by_length, run):
            results.update(zip(rows, measured, strict=True))
            on_batch(len(results))
        return [results[i] for i in range(len(sequences))]

    def _batch(self, sequences: list[Sequence[int]], dims: Sequence[int]) -> list[Measured]:
        """One pass of the blocks; the head runs on the positions that predict a token, a few at a time."""
        stack = self._loaded.layout.stack
        batch = pad(sequences, self._loaded.pad_id, side="right")
        with self._zeroed(dims):
            output = stack(**batch.to(self._loaded.device).inputs(stack), use_cache=False)
        hidden = output.last_hidden_state
        predicted = batch.attention_mask[:, 1:].bool()
        targets = batch.input_ids[:, 1:][predicted]
        hidden = hidden[:, :-1][predicted.to(hidden.device)]
        parts = [
            _score(self._logits(output, part), wanted)
            for part, wanted in zip(hidden.split(self._rows), targets.split(self._rows), strict=True)
        ]
        scores = torch.cat(parts, dim=1) if len(targets) else torch.empty(3, 0)
        return [
            Measured(len(own[0]), float(own[0].sum()), float(own[1].sum()), int(own[2].sum()))
            for own in scores.double().split([len(sequence) - 1 for sequence in sequences], dim=1)
        ]

    def _logits(self, output: ModelOutput, hidden: Tensor) -> Tensor:
        """[n, vocabulary] of final hidden states [n, d]: what the model makes of them after its stack.

        The model's own forward runs, so that whatever it does to logits (scales, soft caps) is done. output: what the
        stack returned, for whatever else the model looks for in it.
        """
        answer = type(output)(**{**output, "last_hidden_state": hidden[None]})
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=self._loaded.device)  # no matter which
        with _answering(self._loaded.layout.stack, answer), self._head.installed():
            return self._loaded.model(input_ids=ids, attention_mask=ids + 1, use_cache=False).logits[0]

    def _zeroed(self, dims: Sequence[int]) -> AbstractContextManager[None]:
        if not dims:
            return nullcontext()
        index: dict[torch.device, Tensor] = {}

        def zero(i: int, x: Tensor) -> Tensor:
            if x.device not in index:
                index[x.device] = torch.tensor(dims, device=x.device)
            return x.index_fill(-1, index[x.device], 0)

        return rewriting(self._points, zero)


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    """[3, n] float32 on the CPU: negative log likelihood of the target, largest probability, whether it is the target.

    logits [n, vocabulary] in any precision, computed with in float32; targets [n].
    """
    logits = logits.float()
    targets = targets.to(logits.device)
    log_total = logits.logsumexp(-1)
    best = logits.argmax(-1)
    of_target = logits.gather(-1, targets[:, None])[:, 0]
    of_best = logits.gather(-1, best[:, None])[:, 0]
    return torch.stack([log_total - of_target, (of_best - log_total).exp(), (best == targets).float()]).to("cpu")


@contextmanager
def _answering(stack: nn.Module, answer: ModelOutput) -> Iterator[None]:
    """Inside, `stack` returns `answer` without running."""
    before = stack.__dict__.get("forward")  # accelerate's, in a model on several devices
    stack.forward = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        del stack.forward
        if before is not None:
            stack.forward = before
