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
from flows.devices import unknown_gpus, visible_gpus
from flows.locks import lock
from flows.slots import Slot, SlotPool, cpu_slots, gpu_slots, host_slots
from tasks.errors import BadInput
from tests.flows.fake_gpus import write_nvidia_smi
from tests.flows.processes import wait_until

HOLD = """
import asyncio, sys, time
from flows.slots import Slot, SlotPool
names, count = sys.argv[1].split(","), int(sys.argv[2])
lease = asyncio.run(SlotPool([Slot(name, None, 1) for name in names]).lease(count))
print("held", flush=True)
time.sleep(600)
"""
TURNS = """
import asyncio, sys, time
from flows.slots import Slot, SlotPool
names, count, log, name = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3], sys.argv[4]
async def main():
    pool = SlotPool([Slot(name, None, 1) for name in names])
    for _ in range(6):
        with await pool.lease(count) as lease:
            with open(log, "a") as file:
                file.write(f"{time.monotonic()} take {name} {lease.name}\\n")
            await asyncio.sleep(0.1)
            with open(log, "a") as file:
                file.write(f"{time.monotonic()} free {name} {lease.name}\\n")
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@pytest.fixture
def pool() -> SlotPool:
    return SlotPool([Slot("cpu-0", None, 1)])


def hold_in_another_process(names: str = "cpu-0", count: int = 1) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, names, str(count)], stdout=subprocess.PIPE, text=True)
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
    child = subprocess.Popen(["sleep", "600"], pass_fds=lease.filenos())
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
    [descriptor] = again.filenos()
    assert os.path.samestat(os.fstat(descriptor), (runtime_folder / "cpu-0.lock").stat())
    again.release()


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (2, (1, 2)), (8, (4, 2)), (9, (4, 2))])
def test_cpu_slots_share_the_cores(cores: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "available_cores", lambda: cores)
    chosen = cpu_slots()
    assert (len(chosen), chosen[0].threads) == expected
    assert [slot.threads for slot in cpu_slots(2)] == [max(1, cores // 2)] * 2
    assert [slot.threads for slot in cpu_slots(2, threads=3)] == [3, 3]


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


def test_gpus_that_cannot_be_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa")
    for visible, unknown in (("0", []), ("GPU-a", []), ("MIG-1", []), ("", []), ("0,7,GPU-b", ["7", "GPU-b"])):
        assert unknown_gpus({"CUDA_VISIBLE_DEVICES": visible}) == unknown
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert host_slots("cpu", 1, 1).device == "cpu"
    for device in ("auto", "cuda"):
        with pytest.raises(BadInput, match="nvidia-smi shows no GPU 7"):
            host_slots(device, 1, 1)


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


def gpus(*names: str) -> SlotPool:
    return SlotPool([Slot(f"gpu-{name}", name, 2) for name in names])


def test_several_slots_are_one_lease() -> None:
    pool = gpus("A", "B", "C")
    lease = pool.try_lease(2)
    assert lease is not None
    assert (lease.gpus, lease.device, lease.threads, lease.name) == ("A,B", "cuda", 4, "gpu-A and gpu-B")
    assert len(lease.filenos()) == 2
    assert pool.try_lease(2) is None
    third = pool.try_lease()
    assert third is not None
    assert third.gpus == "C"
    lease.release()
    third.release()
    everything = pool.try_lease(3)
    assert everything is not None
    everything.release()


def test_a_lease_that_comes_to_nothing_takes_nothing() -> None:
    pool = gpus("A", "B")
    one = pool.try_lease()
    assert one is not None
    assert pool.try_lease(2) is None
    other = pool.try_lease()
    assert other is not None
    one.release()
    other.release()


def test_more_slots_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 of 2 slots"):
        asyncio.run(gpus("A", "B").lease(3))


def test_who_wants_several_is_not_overtaken_for_ever() -> None:
    """Two others take turns at single slots, so that there is hardly a moment when two are free by chance."""
    pool = gpus("A", "B")
    rounds = 0

    async def single() -> None:
        nonlocal rounds
        while True:
            with await pool.lease():
                await asyncio.sleep(0.05)
            rounds += 1

    async def main() -> float:
        others = [asyncio.create_task(single()) for _ in range(4)]
        await asyncio.sleep(0.3)
        started = time.monotonic()
        with await asyncio.wait_for(pool.lease(2), 10):
            seconds = time.monotonic() - started
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return seconds

    assert asyncio.run(main()) < 5
    assert rounds > 2


def test_flows_with_different_gpus_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        ours, theirs = gpus("A", "B"), gpus("C", "D")
        with await ours.lease(2):
            waiting = asyncio.create_task(ours.lease(2))
            await asyncio.sleep(0.1)
            with await asyncio.wait_for(theirs.lease(2), 2):
                pass
        with await waiting:
            pass

    asyncio.run(main())


def test_a_flow_does_not_wait_for_a_slot_that_it_does_not_need() -> None:
    """One holds the first slot and another queues for it, with three more that nobody wants."""

    async def main() -> None:
        first, four = gpus("A"), gpus("A", "B", "C", "D")
        held = await first.lease()
        waiting = asyncio.create_task(first.lease())
        await asyncio.sleep(0.1)
        got = [await asyncio.wait_for(four.lease(), 2), await asyncio.wait_for(four.lease(2), 2)]
        assert [lease.gpus for lease in got] == ["B", "C,D"]
        assert not waiting.done()
        held.release()
        (await asyncio.wait_for(waiting, 2)).release()
        for lease in got:
            lease.release()

    asyncio.run(main())


def test_two_flows_that_want_two_of_three_slots_take_turns_and_both_end(tmp_path: Path) -> None:
    """And a third one whose slots overlap with theirs, named in another order."""
    log = tmp_path / "log"
    wanted = [("gpu-A,gpu-B,gpu-C", "2"), ("gpu-C,gpu-B,gpu-A", "2"), ("gpu-B,gpu-D", "1")]
    command = [sys.executable, "-c", TURNS]
    flows = [
        subprocess.Popen(
            [*command, names, count, str(log), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i, (names, count) in enumerate(wanted)
    ]
    for flow in flows:
        assert flow.stdout is not None
        assert flow.stdout.readline() == "ready\n"
    for flow in flows:
        flow.communicate("go\n", timeout=60)
        assert flow.returncode == 0
    events = sorted(line.split(maxsplit=3) for line in log.read_text().splitlines())
    held: dict[str, str] = {}
    for _, what, flow, names in events:
        for slot in names.split(" and "):
            if what == "take":
                assert slot not in held, f"{slot} was taken twice"
                held[slot] = flow
            else:
                assert held.pop(slot) == flow
    takes = [(flow, len(names.split(" and "))) for _, what, flow, names in events if what == "take"]
    assert {flow: takes.count((flow, int(wanted[int(flow)][1]))) for flow, _ in takes} == {"0": 6, "1": 6, "2": 6}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_of_several_slots_frees_all(number: signal.Signals) -> None:
    pool = gpus("A", "B", "C")
    holder = hold_in_another_process("gpu-A,gpu-B,gpu-C", 2)
    assert pool.try_lease(2) is None

    async def wait_for_them() -> float:
        waiting = asyncio.create_task(pool.lease(2))
        await asyncio.sleep(0.3)
        holder.send_signal(number)
        started = time.monotonic()
        with await waiting:
            return time.monotonic() - started

    assert asyncio.run(wait_for_them()) < 1
    holder.wait()


def test_a_flow_that_is_killed_while_it_waits_blocks_nobody(runtime_folder: Path) -> None:
    pool = gpus("A", "B")
    one = pool.try_lease()
    assert one is not None
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, "gpu-A,gpu-B", "2"])

    def it_stands_in_front() -> bool:
        turn = lock(runtime_folder / "gpu-B.turnstile")
        if turn is not None:
            os.close(turn)
        return turn is None

    wait_until(it_stands_in_front, 20, "the other flow waits")

    async def main() -> None:
        waiting = asyncio.create_task(pool.lease())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        waiter.kill()
        with await asyncio.wait_for(waiting, 2):
            pass

    asyncio.run(main())
    waiter.wait()
    one.release()
