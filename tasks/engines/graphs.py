"""A batch's step as a CUDA graph: one launch for the hundreds of kernels of a forward pass.

The step works on tensors that stay where they are, so a recording of it can be replayed as it is. Its first run for
a plan is an ordinary one, which also compiles kernels and makes buffers; the second is recorded and replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

from tasks.models.memory import is_out_of_memory

Plan = TypeVar("Plan", bound=Hashable)


class GraphedStep(Generic[Plan]):
    """Calls `step(plan)`, from a recording where there is one."""

    def __init__(self, step: Callable[[Plan], None]):
        self._step = step
        self._seen: set[Plan] = set()
        self._graphs: dict[Plan, torch.cuda.CUDAGraph] = {}
        self._recordable = True

    def __call__(self, plan: Plan) -> None:
        if plan in self._graphs:
            self._graphs[plan].replay()
        elif plan not in self._seen or not self._recordable:
            self._seen.add(plan)
            self._step(plan)
        else:
            self._record(plan)
            self(plan)

    def _record(self, plan: Plan) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(plan)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # Nothing of a recording is executed, so the step can still be run. Code that waits for the device (some
            # mixtures of experts choose their experts on the host) cannot be recorded.
            self._recordable = False
            warnings.warn(f"this model's step runs without a CUDA graph, several times slower: {error}", stacklevel=2)
            return
        self._graphs[plan] = graph
