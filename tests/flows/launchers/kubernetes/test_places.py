"""Places in line: as many shards of a flow as were asked for, and no locks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flows.launchers.kubernetes.places import Line, places


def test_places_are_taken_and_freed(runtime_folder: Path) -> None:
    pool = places(3, 4, Line(), gpus=True)
    two = pool.try_lease(2)
    assert two is not None
    assert (two.device, two.threads, two.name, two.filenos()) == ("cuda", 8, "place-0 and place-1", ())
    assert pool.try_lease(2) is None
    with two:
        one = pool.try_lease()
        assert one is not None
    one.release()
    one.release()
    three = pool.try_lease(3)
    assert three is not None
    assert not list(runtime_folder.glob("*")), "nothing is locked"


def test_pools_of_one_line_share_its_places() -> None:
    line = Line()
    gpus, cpus = places(2, 4, line, gpus=True), places(2, 2, line, gpus=False)
    assert (gpus.device, cpus.device) == ("cuda", "cpu")
    taken = gpus.try_lease(2)
    assert taken is not None
    assert cpus.try_lease() is None
    taken.release()
    assert cpus.try_lease() is not None
    assert places(2, 4, Line(), gpus=True).try_lease(2) is not None


def test_who_wants_several_is_not_overtaken_for_ever() -> None:
    async def main() -> float:
        pool = places(2, 1, Line(), gpus=True)

        async def single() -> None:
            while True:
                with await pool.lease():
                    await asyncio.sleep(0.01)

        others = [asyncio.create_task(single()) for _ in range(4)]
        await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with await asyncio.wait_for(pool.lease(2), 5):
            waited = loop.time() - begun
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return waited

    assert asyncio.run(main()) < 1


def test_who_gives_up_waiting_holds_nobody_up() -> None:
    async def main() -> None:
        pool = places(2, 1, Line(), gpus=True)
        with await pool.lease():
            impatient = asyncio.create_task(pool.lease(2))
            await asyncio.sleep(0.02)
            impatient.cancel()
            await asyncio.gather(impatient, return_exceptions=True)
            with await asyncio.wait_for(pool.lease(), 1):
                pass

    asyncio.run(main())


def test_more_places_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        asyncio.run(places(2, 1, Line(), gpus=True).lease(3))
