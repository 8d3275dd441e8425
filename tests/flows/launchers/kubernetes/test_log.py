"""A log that is cut now and then: no line is lost and none comes twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from flows.launchers.kubernetes.log import Log

START = 1_770_802_204


def stamped(nanoseconds: int, text: str) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(START + seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z {text}"


class Kubelet:
    """Answers for a log as a kubelet does: from the second of ``sinceTime`` on, cut after so many bytes."""

    def __init__(self, lines: list[tuple[int, str]], cuts: list[int | None]) -> None:
        self.lines = lines
        self.cuts = cuts
        self.asked: list[str | None] = []

    def __call__(self, since: str | None) -> Kubelet:
        self.asked.append(since)
        return self

    def stream(self, decode_content: bool) -> Iterator[bytes]:
        assert not decode_content
        since = datetime.fromisoformat(self.asked[-1] or "1970-01-01T00:00:00Z").timestamp()
        sent = "".join(stamped(at, text) + "\n" for at, text in self.lines if START * 10**9 + at >= since * 10**9)
        cut = self.cuts[len(self.asked) - 1]
        data = sent.encode()[:cut]
        at, random_sizes = 0, random.Random(len(data))
        while at < len(data):
            size = random_sizes.randint(1, 60)
            yield data[at : at + size]
            at += size
        if cut is not None:
            raise urllib3.exceptions.ProtocolError("Connection broken: IncompleteRead")

    def close(self) -> None:
        """The connection is done with."""


def read(kubelet: Kubelet) -> list[str]:
    log, lines = Log(kubelet), []  # type: ignore[arg-type]
    while True:
        try:
            for line in log.read(to_its_end=True):
                lines.append(line)
        except urllib3.exceptions.ProtocolError:
            continue
        return lines


# Many lines share a time, two streams write out of order by up to a second, and texts repeat.
LINES = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 10), st.sampled_from(["a", "b", "a line", "ü"])), max_size=60
)


@given(LINES, st.lists(st.integers(0, 3000), max_size=6))
def test_every_line_comes_once(lines: list[tuple[int, int, str]], cuts: list[int]) -> None:
    written = [(second * 5 * 10**8 - tenth * 10**8, text) for second, tenth, text in sorted(lines, key=lambda x: x[0])]
    written = [(max(0, at), text) for at, text in written]
    assert read(Kubelet(written, [*cuts, None])) == [text for _, text in written]


def test_a_resumed_log_is_not_read_from_its_start() -> None:
    written = [(i * 10**9, f"line {i}") for i in range(1000)]
    kubelet = Kubelet(written, [20_000, None])
    assert read(kubelet) == [text for _, text in written]
    first, second = kubelet.asked
    assert first is None
    assert datetime.fromisoformat(str(second)).timestamp() > START + 100


def test_what_is_remembered_of_a_long_log_is_its_end_only() -> None:
    log = Log(Kubelet([(i * 10**8, f"line {i}") for i in range(10_000)], [None]))  # type: ignore[arg-type]
    assert len(list(log.read(to_its_end=True))) == 10_000
    assert len(log._recent) < 100


def test_the_last_line_needs_no_end_once_the_container_has_ended() -> None:
    kubelet = Kubelet([(0, "first"), (1, "killed in the middle of")], [None, None])
    data = "".join(stamped(at, text) + "\n" for at, text in kubelet.lines).encode()[:-1]
    kubelet.stream = lambda decode_content: iter([data])  # type: ignore[method-assign]
    log = Log(kubelet)  # type: ignore[arg-type]
    assert list(log.read(to_its_end=False)) == ["first"]
    assert list(log.read(to_its_end=True)) == ["killed in the middle of"]


def test_a_line_that_is_not_the_containers_is_told_once() -> None:
    said = b"unable to retrieve container logs for containerd://0f8fad5b\n"
    kubelet = Kubelet([], [None, None])
    kubelet.stream = lambda decode_content: iter([said])  # type: ignore[method-assign]
    log = Log(kubelet)  # type: ignore[arg-type]
    assert [list(log.read(to_its_end=True)) for _ in range(2)] == [[said.decode().strip()], []]


@pytest.mark.parametrize("zone", ["Z", "+02:00", "-07:00"])
def test_times_of_any_zone(zone: str) -> None:
    kubelet = Kubelet([], [None, None])
    data = f"2026-02-11T09:30:04.123456789{zone} text\n".encode()
    kubelet.stream = lambda decode_content: iter([data])  # type: ignore[method-assign]
    log = Log(kubelet)  # type: ignore[arg-type]
    assert list(log.read(to_its_end=True)) == ["text"]
    assert list(log.read(to_its_end=True)) == []
