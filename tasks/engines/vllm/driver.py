"""Feeding vLLM: requests go in as long as their keys and values have room, and come back in packs.

At most as many requests are in flight as the key-value cache can hold to their ends, so none is preempted. What
finished requests left with the workers is collected for many at once, with one wait for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tasks.engines.interface import Trial
from tasks.engines.vllm import requests
from tasks.engines.vllm.state import Call, Outcome, slot_count
from tasks.models.memory import is_out_of_memory

_REMEDY = {
    "running": "finish or close the results of the call before",
    "broken": "an exception ended a pass before; open another engine",
    "closed": "open another engine",
}


@dataclass(frozen=True)
class CacheRoom:
    """The key-value cache: every token of a sequence takes a place in each of the groups."""

    blocks: int
    block_size: int
    groups: int

    def blocks_for(self, tokens: int) -> int:
        return self.groups * -(-tokens // self.block_size)


@dataclass(frozen=True, eq=False)
class Finished:
    """A trial that ended, with what it left."""

    trial: Trial
    slot: int
    tokens: tuple[int, ...]
    cached: int
    """Tokens of the prompt whose keys and values came from the prefix cache."""
    outcome: Outcome | None = None
    """Of the pack that the trial was collected with."""
    entry: int = -1
    """The trial's own in it."""


class Driver:
    """vllm: an engine that `internals` started."""

    def __init__(self, vllm, internals, bank_digest: str):
        self._vllm, self._internals, self._bank_digest = vllm, internals, bank_digest
        self._room = CacheRoom(*internals.cache_room(vllm))
        self._serial = 0
        self._state: Literal["idle", "running", "broken", "closed"] = "idle"

    def check_idle(self) -> None:
        if self._state != "idle":
            raise RuntimeError(f"the engine is {self._state}; {_REMEDY[self._state]}")

    def holds(self, trial: Trial) -> bool:
        """The cache has room for the trial alone."""
        return self._blocks(trial) <= self._room.blocks

    def close(self) -> None:
        self._state = "closed"
        self._internals.stop(self._vllm)
        self._vllm = None

    def call_workers(self, method: str, *arguments: object):
        """What the first worker answers; all workers hold the same."""
        return self._vllm.collective_rpc(method, args=arguments)[0]

    def run(
        self, trials: Sequence[Trial], call: Call, batch_size: int, end_tokens: Sequence[int]
    ) -> Generator[Finished]:
        """The trials as they finish; at most `batch_size` in flight. Close it to abandon those still running."""
        self.check_idle()
        in_flight: dict[str, tuple[Trial, int]] = {}
        self._state = "running"
        try:
            self.call_workers("tomograph_begin", call)
            yield from self._drive(deque(trials), in_flight, batch_size, end_tokens)
        except GeneratorExit:  # the caller wants no more, or could not use a result
            self._vllm.abort_request(list(in_flight))
            self._state = "idle"
            raise
        except BaseException as error:
            self._state = "broken"
            if isinstance(error, Exception) and is_out_of_memory(error):
                error.add_note("vLLM: open the engine with a smaller batch_size, max_batched_tokens or cache_bytes")
            raise
        self._state = "idle"

    def _drive(
        self,
        queue: deque[Trial],
        in_flight: dict[str, tuple[Trial, int]],
        batch_size: int,
        end_tokens: Sequence[int],
    ) -> Generator[Finished]:
        free, room = list(range(slot_count(batch_size))), self._room.blocks
        done: list[Finished] = []
        while queue or in_flight or done:
            while queue and free and len(in_flight) < batch_size and self._blocks(queue[0]) <= room:
                trial, slot = queue.popleft(), free.pop()
                room -= self._blocks(trial)
                in_flight[self._add(trial, slot, end_tokens)] = trial, slot
            for output in self._vllm.step() if in_flight else ():
                trial, slot = in_flight.pop(output.request_id)
                room += self._blocks(trial)
                done.append(Finished(trial, slot, tuple(output.outputs[0].token_ids), output.num_cached_tokens or 0))
            if done and (len(done) >= batch_size // 4 or not in_flight):
                pack, done = done, []
                slots = [one.slot for one in pack]
                outcome = self.call_workers("tomograph_collect", slots)
                free += slots
                for entry, one in enumerate(pack):
                    yield Finished(one.trial, one.slot, one.tokens, one.cached, outcome, entry)

    def _add(self, trial: Trial, slot: int, end_tokens: Sequence[int]) -> str:
        self._serial += 1
        name = str(self._serial)
        what = asdict(requests.Instructions.of(trial, slot, self._serial))
        salt = requests.cache_salt(trial.edit, len(trial.prompt), self._bank_digest)
        self._vllm.add_request(
            name, self._internals.prompt(trial.prompt, salt), self._internals.sampling(what, end_tokens)
        )
        return name

    def _blocks(self, trial: Trial) -> int:
        return self._room.blocks_for(len(trial.prompt) + trial.max_new_tokens)
