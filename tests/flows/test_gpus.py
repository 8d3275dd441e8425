"""Who has which GPU, as a table."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.gpus import slot_rows, slot_table, terminal_table
from flows.slots import Occupant, SlotPool, cpu_slots, gpu_slots
from tests.flows.fake_gpus import write_nvidia_smi


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa\n1, GPU-bbbb")


def test_free_and_leased_gpus_are_told_apart() -> None:
    occupant = Occupant(flow="cunning-otter", shard="trials 3/40 1a2b3c4d", since=1_800_000_000.4)
    with asyncio.run(SlotPool(gpu_slots()).lease(1, occupant)):
        first, second = slot_table(slot_rows())
        assert first == {
            "slot": "GPU 0",
            "device": "Imaginary GPU GPU-aaaa",
            "memory": "0 MiB / 81920 MiB",
            "state": "in use",
            "flow": "cunning-otter",
            "shard": "trials 3/40 1a2b3c4d",
            "since": "2027-01-15 08:00:00 UTC",
        }
        assert (second["slot"], second["state"], second["flow"]) == ("GPU 1", "free", "")
    assert [row["state"] for row in slot_table(slot_rows())] == ["free", "free"]


def test_looking_takes_nothing() -> None:
    pool = SlotPool(gpu_slots())
    slot_rows()
    with asyncio.run(pool.lease(2)):
        slot_rows()
        assert pool.try_lease(1) is None


def test_places_on_the_cpu_are_shown_while_they_are_in_use() -> None:
    with asyncio.run(SlotPool(cpu_slots(2)).lease(1, Occupant("otter", "squares 1/2", time.time() - 75))):
        row = slot_table(slot_rows())[-1]
        assert (row["slot"], row["state"], row["flow"]) == ("cpu-0", "in use", "otter")
    assert len(slot_rows()) == 2


def test_a_lease_without_a_word_is_still_in_use() -> None:
    with asyncio.run(SlotPool(gpu_slots()).lease(1)):
        assert [row["state"] for row in slot_table(slot_rows())] == ["in use", "free"]


def test_the_terminal_shows_it() -> None:
    console = Console(record=True, width=160)
    with asyncio.run(SlotPool(gpu_slots()).lease(1, Occupant("otter", "trials 1/9", time.time()))):
        console.print(terminal_table(slot_rows()))
    lines = console.export_text().splitlines()
    assert lines[0].split() == ["slot", "device", "memory", "state", "flow", "shard", "since"]
    assert "in use  otter  trials 1/9" in lines[1]


def test_the_command_prints_it() -> None:
    with asyncio.run(SlotPool(gpu_slots()).lease(1, Occupant("otter", "trials 1/9", time.time()))):
        command = [sys.executable, "-m", "flows", "gpus"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "160"})
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["slot", "device"], ["GPU", "0"], ["GPU", "1"]]
    assert "in use" in done.stdout.splitlines()[1]
    assert "free" in done.stdout.splitlines()[2]
