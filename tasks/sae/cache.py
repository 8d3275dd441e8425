"""SAEs on a device within a budget of bytes, the least recently used one out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tasks.errors import BadInput
from tasks.sae.sae import SAE


@dataclass
class CacheStats:
    hits: int = 0
    loads: int = 0
    evictions: int = 0


class SaeCache:
    """layer -> SAE on `device`, loaded when first asked for.

    Args:
        loader: gives a layer's SAE, on any device.
        byte_budget: the most that the SAEs kept here may take together on the device.
    """

    def __init__(self, loader: Callable[[int], SAE], byte_budget: int, device: str | torch.device = "cpu") -> None:
        self._loader = loader
        self._budget = byte_budget
        self._device = torch.device(device)
        self._held: OrderedDict[int, SAE] = OrderedDict()
        self.stats = CacheStats()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(sae.nbytes for sae in self._held.values())

    @property
    def layers(self) -> list[int]:
        """Layers held now, least recently used first."""
        return list(self._held)

    def get(self, layer: int) -> SAE:
        """The SAE of a layer.

        Others are let go before this one moves to the device, so that both never need room there at once.

        Raises:
            BadInput: this SAE alone is larger than the budget.
        """
        if layer in self._held:
            self.stats.hits += 1
            self._held.move_to_end(layer)
            return self._held[layer]
        sae = self._loader(layer)
        self.stats.loads += 1
        if sae.nbytes > self._budget:
            raise BadInput(
                "saes",
                sae.name,
                f"takes {sae.nbytes / 2**30:.2f} GiB and the device has {self._budget / 2**30:.2f} GiB for SAEs",
                "hold it in bfloat16 (saes.dtype), use a narrower dictionary, or a device with more memory",
            )
        while self.nbytes + sae.nbytes > self._budget:
            self._held.popitem(last=False)
            self.stats.evictions += 1
        self._held[layer] = sae.to(self._device)
        return self._held[layer]
