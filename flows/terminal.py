"""Live progress of a run in the terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flows.log_lines import LogLines
from flows.progress import RunProgress, StageProgress, watched

REFRESH_PER_SECOND = 4
MARKS = {"waiting": ("·", "dim"), "done": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("–", "dim")}

INTEREST = ("running", "failed", "waiting", "done", "skipped")


@contextlib.contextmanager
def shown(console: Console) -> Iterator[None]:
    """Show the progress of the flow that is called inside; on a terminal live, elsewhere in lines."""
    run = RunProgress()
    token = watched.set(run)
    lines = LogLines(run, console)
    live = Live(_View(run), console=console, refresh_per_second=REFRESH_PER_SECOND)
    run.tell = partial(console.print, style="dim", markup=False, highlight=False) if console.is_terminal else lines.tell
    log, warnings = logging.getLogger("tomograph"), _Warnings(console)
    log.addHandler(warnings)
    try:
        with live if console.is_terminal else lines:
            yield
    finally:
        log.removeHandler(warnings)
        watched.reset(token)


class _Warnings(logging.Handler):
    """Faults that are waited for, as soon as they are met, so that nobody looks at a run that says nothing."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(record.getMessage(), "yellow"), soft_wrap=True)


def most_telling(stages: Sequence[StageProgress], room: int) -> list[StageProgress]:
    """As many of ``stages`` as there is room for, in order: first what happens now, then what failed, then
    what comes next.

    All of them once nothing happens any more: what is left standing may scroll.
    """
    if len(stages) <= room or not any(stage.state == "running" for stage in stages):
        return list(stages)
    by_interest = sorted(range(len(stages)), key=lambda i: (INTEREST.index(stages[i].state), i))
    return [stages[i] for i in sorted(by_interest[: max(1, room)])]


class _View:
    def __init__(self, run: RunProgress) -> None:
        self._run = run
        self._spinner = Spinner("dots", style="cyan")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(width=24)
        table.add_column(overflow="ellipsis", no_wrap=True)
        stages = list(self._run.stages.values())
        shown = most_telling(stages, console.size.height - 2)
        for stage in shown:
            table.add_row(*self._row(stage))
        yield table
        if len(shown) < len(stages):
            yield Text(f"  and {len(stages) - len(shown)} more; {self._run.describe().partition(';')[0]}", "dim")

    def _row(self, stage: StageProgress) -> tuple[Text | Spinner, Text, ProgressBar, Text]:
        mark, style = MARKS.get(stage.state, ("", ""))
        to_come = stage.state in ("waiting", "skipped")
        text = "" if stage.state == "waiting" else stage.describe()
        return (
            Text(mark, style) if mark else self._spinner,
            Text(stage.name, "dim" if to_come else "bold"),
            ProgressBar(total=1.0, completed=0.0 if to_come else stage.fraction, width=24),
            Text(text, "dim" if to_come or stage.state == "done" else ""),
        )
