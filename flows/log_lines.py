"""Progress of a run where it is read later or elsewhere: whole lines, for a log, CI and nohup."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from rich.console import Console

from flows.progress import RunProgress, StageProgress

PROGRESS_SECONDS = 30.0
LOOK_SECONDS = 0.25
FEWEST_FOR_ESTIMATE = 0.02
"""Share of a stage that must have been seen to pass before the time that is left is guessed from it."""


@dataclass
class _Told:
    """What was said about a stage: its state, when the next line is due, and when it was first seen at work."""

    due: float
    state: str = "waiting"
    first: tuple[float, float] | None = None
    """Time, and the share of the stage that was done by then."""


class LogLines:
    """A line when a stage begins and one when it ends, and now and then how far the running ones are.

    A thread looks at ``run``, as the live view does, so that the flow's event loop is never waited for.
    """

    def __init__(self, run: RunProgress, console: Console, every: float = PROGRESS_SECONDS) -> None:
        self._run = run
        self._console = console
        self._every = every
        self._began = time.monotonic()
        self._told: dict[str, _Told] = {}
        self._over = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> LogLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.look(time.monotonic())

    def tell(self, text: str) -> None:
        """A line that a stage left, after those about the stage itself."""
        self.look(time.monotonic())
        self._say(text)

    def look(self, now: float) -> None:
        """Tell what is new at ``now``, in seconds of the monotonic clock."""
        with self._looking:
            self._look(now)

    def _look(self, now: float) -> None:
        for stage in list(self._run.stages.values()):
            told = self._told.setdefault(stage.name, _Told(due=now + self._every))
            if told.state == "waiting" and stage.state != "waiting":
                told.due = now + self._every
                if stage.reused < stage.shards:
                    reused = f", {stage.reused} of them reused" if stage.reused else ""
                    self._say(f"{stage.name}: begins; {stage.in_shards}{reused}")
            if told.state != stage.state and stage.state in ("done", "failed", "skipped"):
                self._say(f"{stage.name}: {_ended(stage)}")
            told.state = stage.state
            if stage.state == "running" and stage.running:
                self._running(stage, told, now)

    def _running(self, stage: StageProgress, told: _Told, now: float) -> None:
        fraction = stage.fraction
        if told.first is None and fraction > stage.reused / stage.shards:
            told.first = (now, fraction)  # a shard that is resumed begins somewhere in the middle
        if now < told.due:
            return
        told.due = now + self._every
        left = ""
        if told.first is not None and (seen := fraction - told.first[1]) > FEWEST_FOR_ESTIMATE:
            left = f", about {duration((1 - fraction) * (now - told.first[0]) / seen)} left"
        self._say(f"{stage.name}: {stage.describe()}; {fraction:.0%} after {duration(stage.seconds)}{left}")

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.look(time.monotonic())

    def _say(self, text: str) -> None:
        clock = int(time.monotonic() - self._began)
        stamp = f"[{clock // 3600}:{clock // 60 % 60:02}:{clock % 60:02}]"
        self._console.print(f"{stamp} {text}", markup=False, highlight=False, soft_wrap=True)


def _ended(stage: StageProgress) -> str:
    text = stage.describe()
    if stage.state == "skipped" or stage.reused == stage.shards:
        return text
    return f"{stage.state} after {duration(stage.seconds)}; {text}"


def duration(seconds: float) -> str:
    """ "0.4 s", "41 s", "3 min 20 s", "2 h 5 min" """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
