"""The SAEs of a task: from the shard that trained them, or from where the user's source says."""

from __future__ import annotations

from tasks.context import ShardContext
from tasks.sae.cache import SaeCache
from tasks.sae.load import load_sae
from tasks.sae.spec import SaeSource

DEVICE_BYTES = {"cpu": 4 * 2**30, "cuda": 16 * 2**30}


def sae_cache(ctx: ShardContext, source: SaeSource, device: str | None = None) -> SaeCache:
    """layer -> SAE on `device` (default the task's), least recently used first out."""
    device = device or ctx.runtime.device

    def loader(layer: int):
        if source.kind == "train":
            from tasks.sae.run import load_trained

            return load_trained(ctx.input("saes"), layer)
        return load_sae(source, layer)

    return SaeCache(loader, DEVICE_BYTES[device.partition(":")[0]], device)
