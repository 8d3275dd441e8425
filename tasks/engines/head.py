"""Float32 logits from a model of 16-bit weights.

A bfloat16 head rounds its logits to steps of 0.125 where they are large, which moves a probability by several
percent and makes ties. Its inputs and weights are exact in float32, so the same products summed and returned in
float32 cost little and lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Float32Head:
    """A stand-in for the forward of a linear head.

    CUDA multiplies 16-bit matrices into float32 as they are; elsewhere a float32 copy of the weights is held. Weights
    that accelerate keeps elsewhere between passes are left to it, and with them the head's own forward.
    """

    def __init__(self, head: nn.Module):
        self._head = head
        self._wanted = (
            isinstance(head, nn.Linear)
            and head.weight.dtype in (torch.bfloat16, torch.float16)
            and head.weight.device.type != "meta"
        )
        if not self._wanted:
            return
        self._bias = None if head.bias is None else head.bias.float()
        if head.weight.is_cuda:
            self._forward = self._from_16_bit
        else:
            self._forward = self._from_copy
            self._weight = head.weight.float()
            # bfloat16 inputs and weights: a CPU may multiply in bfloat16 and lose nothing.
            self._precision = "bf16" if head.weight.dtype == torch.bfloat16 else "ieee"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the model's logits are float32. A head that is not a 16-bit linear layer stays as it is."""
        if not self._wanted:
            yield
            return
        before = self._head.__dict__.get("forward")  # accelerate's, in a model on several devices
        self._head.forward = self._forward
        try:
            yield
        finally:
            del self._head.forward
            if before is not None:
                self._head.forward = before

    def _from_copy(self, hidden: Tensor) -> Tensor:
        matmul = torch.backends.mkldnn.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, self._precision
        try:
            return nn.functional.linear(hidden.float(), self._weight, self._bias)
        finally:
            matmul.fp32_precision = before

    def _from_16_bit(self, hidden: Tensor) -> Tensor:
        flat = torch.mm(
            hidden.to(self._head.weight.device).flatten(0, -2), self._head.weight.t(), out_dtype=torch.float32
        )
        logits = flat.view(*hidden.shape[:-1], -1)
        return logits if self._bias is None else logits + self._bias
