"""Free memory, as the system's files tell it, and batches that do not fit it."""

import psutil
import pytest
import torch

from tasks.models.memory import Halving, cgroup_bytes, free_bytes, machine_bytes

GIB = 2**30


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_of_this_machine():
    assert machine_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert 0 < free_bytes("cpu") <= machine_bytes() * 1.2


def test_without_proc_the_whole_memory_counts(tmp_path):
    assert machine_bytes(tmp_path / "meminfo") == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert cgroup_bytes(tmp_path) == []


def test_limits_of_version_2_at_every_level(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.current": "5\n",
            "sys/fs/cgroup/pod/box/memory.stat": "anon 1\n",
            "sys/fs/cgroup/pod/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{6 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {GIB}\n",
        },
    )
    assert cgroup_bytes(tmp_path) == [3 * GIB]


def test_limits_of_version_1_in_a_container_that_sees_its_own_group_as_the_top(tmp_path):
    group = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
            f"{group}/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{group}/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{group}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
        },
    )
    assert cgroup_bytes(tmp_path) == [2 * GIB]


def fits(most):
    """Something to run on batches that has memory for `most` items, and the sizes it was given."""
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("no more")
        return sum(batch)

    return run, sizes


def test_batches_are_halved_and_stay_so():
    run, sizes = fits(2)
    halved = []
    batches = Halving(6, halved.append)
    assert list(batches.over([1, 2, 3, 4, 5], run)) == [([1, 2], 3), ([3, 4], 7), ([5], 5)]
    assert (sizes, halved, batches.size) == ([5, 2, 2, 1], [5], 2)
    assert list(batches.over([7], run)) == [([7], 7)]


def test_one_item_too_many_and_other_errors_are_raised():
    run, _ = fits(0)
    with pytest.raises(torch.OutOfMemoryError):
        list(Halving(4).over([1, 2], run))
    with pytest.raises(ZeroDivisionError):
        list(Halving(4).over([1, 2], lambda batch: 1 / 0))
