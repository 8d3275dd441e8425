"""Keys and values of prompts, computed once and shared by all trials of the prompt.

The prefix of a trial is its prompt without the last token: that one is read by each trial itself, since edits begin
there. Only an edit of scope `all` changes the prefix; then trials share it when prompt and edit are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from tasks.engines.attention import Prefix
from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits
from tasks.engines.hooks import BlockHooks, Pass
from tasks.engines.interface import Edit
from tasks.engines.tiles import PrefixKey


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
        device: torch.device,
        hooks: BlockHooks,
        bank: Bank | None,
        byte_budget: int,
        share: bool = True,
    ):
        self._model, self._device, self._hooks, self._bank = model, device, hooks, bank
        self._budget, self._share = byte_budget, share
        self._kept: OrderedDict[PrefixKey, EditedPrefix] = OrderedDict()
        self._bytes = 0

    def get(self, key: PrefixKey) -> EditedPrefix:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        entry = self._compute(*key)
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
        now = self._pass(length, edit if length else None)
        # Without the model's config the cache keeps every position of every layer, also where attention slides.
        cache = DynamicCache()
        positions = torch.arange(tokens.shape[1], device=self._device)[None]
        with self._hooks.during(now):
            self._model.base_model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        keys = [layer.keys[0, :, :length] for layer in cache.layers]
        values = [layer.values[0, :, :length] for layer in cache.layers]
        return EditedPrefix(Prefix(keys, values, length), int(now.found.applied.sum()) if now.edited_layers else 0)

    def _pass(self, length: int, edit: Edit | None) -> Pass:
        """Every position of the prefix has the edit."""
        edits, found = TokenEdits.empty(length, self._device), Found.empty(length, self._device)
        if edit is None:
            return Pass(edits, found)
        value = float("nan") if edit.value is None else edit.value
        each = lambda fill: torch.full((length,), fill, device=self._device)  # noqa: E731
        edits.fill(self._bank, each(edit.row), each(value), each(edit.mode == "reconstruct"))
        layer = [int(self._bank.layer[edit.row])]
        whole = edit.mode == "reconstruct" or bool(self._bank.full_encode[edit.row])
        return Pass(edits, found, layer, layer if whole else ())
