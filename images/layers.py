"""Which packages go into which layer of the images: `python layers.py LOCKS VARIANT TO`.

Writes requirement files with hashes into the new folder TO. What images hold at the same version, they share as layers:
`every.txt` is in all images of all variants, `pytorch.txt` (torch and its CUDA libraries) and `tasks.txt` in the images
`torch` and `vllm` of this variant. `flows.txt`, `torch.txt` and `vllm.txt` are what is left of each image's lock.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

VARIANTS = ("cpu", "cuda")
PYTORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")


def entries(lock: Path) -> set[str]:
    """The requirements of a lock, each with its hashes."""
    return set(re.findall(r"^[a-z0-9].*(?:\n +--hash=.*)+", lock.read_text(), re.MULTILINE))


def layers(locks: Path, variant: str) -> dict[str, set[str]]:
    """Requirements by layer."""
    flows = entries(locks / "flows.txt")
    torch, vllm = ({each: entries(locks / f"{name}-{each}.txt") for each in VARIANTS} for name in ("torch", "vllm"))
    every = flows.intersection(*torch.values(), *vllm.values())
    shared = (torch[variant] & vllm[variant]) - every
    pytorch = {entry for entry in shared if PYTORCH.match(entry)}
    return {
        "every": every,
        "pytorch": pytorch,
        "tasks": shared - pytorch,
        "flows": flows - every,
        "torch": torch[variant] - every - shared,
        "vllm": vllm[variant] - every - shared,
    }


if __name__ == "__main__":
    locks, variant, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if variant not in VARIANTS:
        sys.exit(f"VARIANT is {variant!r}: give cpu or cuda")
    folder.mkdir()
    for name, requirements in layers(locks, variant).items():
        (folder / f"{name}.txt").write_text("\n".join(sorted(requirements)) + "\n")
