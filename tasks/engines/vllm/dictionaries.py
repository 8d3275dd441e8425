"""Whole dictionaries, handed to the workers as files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tasks.sae.sae import SAE, Threshold, TopK


def save_dictionary(sae: SAE, path: Path) -> None:
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors |= {"k": torch.tensor(sae.gate.k)} if isinstance(sae.gate, TopK) else {"theta": sae.gate.theta}
    tensors["layer"] = torch.tensor(sae.layer)
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata={"name": sae.name})


def load_dictionary(path: Path | str) -> SAE:
    tensors = load_file(path)
    gate = TopK(int(tensors["k"])) if "k" in tensors else Threshold(tensors["theta"])
    parts = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return SAE(layer=int(tensors["layer"]), gate=gate, name=Path(path).stem, **parts)
