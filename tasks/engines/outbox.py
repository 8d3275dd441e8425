"""What the device tells the host: copies that are made while the device goes on.

On CUDA each message is copied to pinned memory on a stream of its own. A message is taken when its copy is done, or
waited for when more than `lag` messages are under way; waiting for an old copy leaves the device its queued work.
Elsewhere a message arrives when more than `lag` newer ones were sent; with lag 0, at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEFAULT_LAG = {"cpu": 0, "cuda": 2}


class Outbox:
    def __init__(self, device: torch.device, lag: int | None = None):
        self._lag = DEFAULT_LAG.get(device.type, 0) if lag is None else lag
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._sent: deque[tuple[Any, dict[str, Tensor], torch.cuda.Event | None]] = deque()

    def send(self, label: Any, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors as they are at this point of the device's work."""
        snapshots = {name: t.clone() for name, t in tensors.items()}
        if self._stream is None:
            self._sent.append((label, snapshots, None))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        copies = {}
        with torch.cuda.stream(self._stream):
            for name, tensor in snapshots.items():
                copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
            done = torch.cuda.Event()
            done.record(self._stream)
        self._sent.append((label, copies, done))

    def arrived(self, wait: bool = False) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Messages in the order sent; with `wait` all of them, however far the device is."""
        while self._sent and (wait or self._there()):
            label, tensors, done = self._sent.popleft()
            if done is not None:
                done.synchronize()
            yield label, {name: t.numpy() for name, t in tensors.items()}

    def _there(self) -> bool:
        done = self._sent[0][2]
        return len(self._sent) > self._lag or (done is not None and done.query())
