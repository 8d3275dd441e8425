"""Keys and values of prompts, computed once and shared by all trials of the prompt.

The prefix of a trial is its prompt without the last token: that one is read by each trial itself, since edits begin
there. Only an edit of scope `all` changes the prefix; then trials share it when prompt and edit are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from tasks.engines.attention import Prefix
from tasks.engines.edit import LayerEdits
from tasks.engines.hooks import BlockHooks, EditLog, Pass
from tasks.engines.interface import Edit


@dataclass(frozen=True, eq=False)
class EditedPrefix:
    prefix: Prefix
    edits_applied: int
    """Positions of the prefix that were edited: its length for scope `all`, else 0."""


class PrefixStore:
    """Least recently used prefixes within a byte budget."""

    def __init__(
        self,
        model: PreTrainedModel,
        hooks: BlockHooks,
        make_edits: Callable[[list[tuple[int, int, Edit]]], dict[int, LayerEdits]],
        byte_budget: int,
        share: bool = True,
    ):
        self._model, self._hooks, self._make_edits = model, hooks, make_edits
        self._device = next(model.parameters()).device
        self._budget, self._share = byte_budget, share
        self._kept: OrderedDict[tuple, EditedPrefix] = OrderedDict()
        self._bytes = 0

    def get(self, prompt: tuple[int, ...], edit: Edit | None) -> EditedPrefix:
        edit = edit if edit is not None and edit.scope == "all" else None
        key = (prompt, edit)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        entry = self._compute(prompt, edit)
        if self._share:
            self._kept[key] = entry
            self._bytes += entry.prefix.nbytes
            while self._bytes > self._budget and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].prefix.nbytes
        return entry

    def _compute(self, prompt: tuple[int, ...], edit: Edit | None) -> EditedPrefix:
        length = len(prompt) - 1
        # A prompt of one token has an empty prefix: the token is run all the same, for the shapes of its keys.
        tokens = torch.tensor([prompt[: max(length, 1)]], device=self._device)
        log = EditLog.empty(1, self._device)
        every = [(token, 0, edit) for token in range(length)] if edit is not None else []
        self._hooks.current = Pass(self._make_edits(every), log)
        # Without the model's config the cache keeps every position of every layer, also where attention slides.
        cache = DynamicCache()
        positions = torch.arange(tokens.shape[1], device=self._device)[None]
        self._model.base_model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        keys = [layer.keys[0, :, :length] for layer in cache.layers]
        values = [layer.values[0, :, :length] for layer in cache.layers]
        return EditedPrefix(Prefix(keys, values, length), int(log.applied[0]))
