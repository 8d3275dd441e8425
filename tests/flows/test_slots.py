"""Slots: kernel locks shared by every process on the host."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import slots
from flows.slots import Slot, SlotPool, cpu_slots, gpu_slots, visible_gpus

HOLD = """
import asyncio, sys, time
from flows.slots import Slot, SlotPool
lease = asyncio.run(SlotPool([Slot("cpu-0", None, 1)]).lease())
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def pool() -> SlotPool:
    return SlotPool([Slot("cpu-0", None, 1)])


def hold_in_another_process() -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_slot_has_one_holder(pool: SlotPool) -> None:
    first = pool.try_lease()
    assert first is not None
    assert pool.try_lease() is None
    first.release()
    second = pool.try_lease()
    assert second is not None
    second.release()


def test_a_dead_holder_frees_its_slot_at_once(pool: SlotPool) -> None:
    holder = hold_in_another_process()
    assert pool.try_lease() is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lease = pool.try_lease()
    assert lease is not None
    lease.release()


def test_a_slot_stays_taken_while_its_child_lives(pool: SlotPool) -> None:
    lease = pool.try_lease()
    assert lease is not None
    child = subprocess.Popen(["sleep", "600"], pass_fds=[lease.fileno()])
    lease.release()
    assert pool.try_lease() is None
    child.kill()
    child.wait()
    again = pool.try_lease()
    assert again is not None
    again.release()


def test_waiting_costs_little_and_ends_soon(pool: SlotPool) -> None:
    holder = hold_in_another_process()

    async def wait_for_it() -> tuple[float, float]:
        waiting = asyncio.create_task(pool.lease())
        cpu = time.process_time()
        await asyncio.sleep(1)
        cpu = time.process_time() - cpu
        holder.kill()
        started = time.monotonic()
        with await waiting:
            return cpu, time.monotonic() - started

    cpu, delay = asyncio.run(wait_for_it())
    holder.wait()
    assert cpu < 0.1
    assert delay < 0.5


def test_those_who_wait_take_turns(pool: SlotPool) -> None:
    """A flow that frees its slot and wants it again stands behind one that was waiting."""
    order: list[str] = []

    async def flow(name: str) -> None:
        for _ in range(3):
            with await pool.lease():
                order.append(name)
                await asyncio.sleep(0.15)

    async def both() -> None:
        await asyncio.gather(flow("a"), flow("b"))

    asyncio.run(both())
    assert order[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])


def test_a_deleted_lock_file_is_not_a_second_slot(pool: SlotPool, runtime_folder: Path) -> None:
    """Someone cleans the temporary folder between opening and locking: the lock would hold nothing."""
    lease = pool.try_lease()
    assert lease is not None
    (runtime_folder / "cpu-0.lock").unlink()
    lease.release()
    again = pool.try_lease()
    assert again is not None
    assert os.path.samestat(os.fstat(again.fileno()), (runtime_folder / "cpu-0.lock").stat())
    again.release()


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (2, (1, 2)), (8, (4, 2)), (9, (4, 2))])
def test_cpu_slots_share_the_cores(cores: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "available_cores", lambda: cores)
    chosen = cpu_slots()
    assert (len(chosen), chosen[0].threads) == expected
    assert [slot.threads for slot in cpu_slots(2)] == [max(1, cores // 2)] * 2
    assert [slot.threads for slot in cpu_slots(2, threads=3)] == [3, 3]


def write_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """A program of that name that prints what the real one would."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_gpus_are_found_and_named_by_their_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa\n1, GPU-bbbb\n2, GPU-cccc")
    assert visible_gpus({}) == [("0", "GPU-aaaa"), ("1", "GPU-bbbb"), ("2", "GPU-cccc")]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,0"}) == [("2", "GPU-cccc"), ("0", "GPU-aaaa")]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-bb"}) == [("GPU-bb", "GPU-bbbb")]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,-1,2"}) == [("1", "GPU-bbbb")]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [slot.gpu for slot in gpu_slots()] == ["2", "0"]
    assert [slot.name for slot in gpu_slots(1)] == ["gpu-GPU-cccc"]


def test_two_names_of_one_gpu_are_one_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvidia_smi(tmp_path, monkeypatch, "3, GPU-aaaa")
    by_index = SlotPool([Slot(f"gpu-{uuid}", name, 1) for name, uuid in visible_gpus({"CUDA_VISIBLE_DEVICES": "3"})])
    by_uuid = SlotPool([Slot(f"gpu-{uuid}", name, 1) for name, uuid in visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a"})])
    lease = by_index.try_lease()
    assert lease is not None
    assert by_uuid.try_lease() is None
    lease.release()


def test_no_gpus_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []


def test_a_second_waiter_does_not_block_the_loop(pool: SlotPool) -> None:
    async def main() -> bool:
        with await pool.lease():
            waiting = [asyncio.create_task(pool.lease()) for _ in range(3)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        lease = pool.try_lease()
        assert lease is not None
        lease.release()
        return True

    assert asyncio.run(main())
