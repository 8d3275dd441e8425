"""The slow twin of the engine: one trial at a time, no cache, the whole dictionary encoded and decoded in a hook.

Written from the definitions alone. The model reads the whole sequence at every step, and every position of the
edit's scope is edited anew, which is what an edit that persists in the key-value cache means.
"""

from __future__ import annotations

import numpy as np
import torch

from tasks.engines.bank import Bank
from tasks.engines.interface import Edit, Trial
from tasks.models.layout import Layout, block_output, replace_block_output


def edited_positions(edit: Edit, prompt_length: int, length: int) -> list[int]:
    first = {"last": prompt_length - 1, "decode": prompt_length - 1, "all": 0}[edit.scope]
    end = prompt_length if edit.scope == "last" else length
    return list(range(first, end))


def edit_vector(h: torch.Tensor, edit: Edit, bank: Bank, sae) -> torch.Tensor:
    """h [d] -> h' [d] by full encode and decode."""
    feature = int(bank.feature[edit.row])
    code = sae.encode(h.float()[None])[0]
    changed = code.clone()
    if edit.value is not None:
        changed[feature] = edit.value
    if int(bank.kind[edit.row]) == 0:
        new, old = sae.decode(changed[None])[0], sae.decode(code[None])[0]
    else:  # a control writes the same change along its own direction
        new = sae.decode(code[None])[0] + (changed - code)[feature] * bank.w[edit.row]
        old = sae.decode(code[None])[0]
    return h + new - old if edit.mode == "keep_error" else new


def forward(model, layout: Layout, ids: list[int], prompt_length: int, edit: Edit | None, bank: Bank, saes: dict):
    """One full forward pass: (logits of the last position [V], edited stream after each block {layer: [T, d]})."""
    stream: dict[int, torch.Tensor] = {}

    def hook_of(layer):
        def hook(module, args, output):
            h = block_output(output).clone()
            if edit is not None and int(bank.layer[edit.row]) == layer:
                for position in edited_positions(edit, prompt_length, len(ids)):
                    h[0, position] = edit_vector(h[0, position], edit, bank, saes[layer]).to(h.dtype)
            stream[layer] = h[0]
            return replace_block_output(output, h)

        return hook

    handles = [block.register_forward_hook(hook_of(i)) for i, block in enumerate(layout.blocks)]
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    finally:
        for handle in handles:
            handle.remove()
    return logits, stream


def probabilities(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """[V] float64, nucleus by a plain loop over tokens from the most probable down."""
    z = logits.double().numpy() / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    if top_p < 1:
        kept, mass = np.zeros_like(p), 0.0
        for token in np.argsort(-p, kind="stable"):
            if mass >= top_p:
                break
            kept[token] = p[token]
            mass += p[token]
        p = kept / kept.sum()
    return p


def steps(model, layout: Layout, trial: Trial, bank: Bank, saes: dict, end_tokens=(), forced=()):
    """One (token, logits [V], edited stream {layer: [T, d]}) per generated token.

    The first tokens may be `forced`, so that the loop follows another's choices; the token given is what was read on.
    """
    uniform = np.random.Generator(np.random.Philox(key=trial.seed)).random(trial.max_new_tokens)
    ids = list(trial.prompt)
    for step in range(trial.max_new_tokens):
        logits, stream = forward(model, layout, ids, len(trial.prompt), trial.edit, bank, saes)
        if step < len(forced):
            token = forced[step]
        elif trial.temperature == 0:
            token = int(logits.argmax())
        else:
            p = probabilities(logits, trial.temperature, trial.top_p)
            token = int(np.searchsorted(np.cumsum(p), uniform[step] * p.sum(), side="right"))
        ids.append(token)
        yield token, logits, stream
        if token in end_tokens:
            break


def generate(model, layout: Layout, trial: Trial, bank: Bank, saes: dict, end_tokens=()):
    """(generated tokens, edited stream of the last pass {layer: [T, d]})."""
    out, stream = [], {}
    for token, _, stream in steps(model, layout, trial, bank, saes, end_tokens):  # noqa: B007
        out.append(token)
    return tuple(out), stream
