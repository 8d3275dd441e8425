"""Live progress of a run in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flows.progress import RunProgress, StageProgress, watched

REFRESH_PER_SECOND = 4
MARKS = {"waiting": ("·", "dim"), "done": ("✓", "green"), "failed": ("✗", "red")}


@contextlib.contextmanager
def shown(console: Console) -> Iterator[None]:
    """Show the progress of the flow that is called inside; on a terminal live, elsewhere once at the end."""
    run = RunProgress()
    token = watched.set(run)
    try:
        with Live(_View(run), console=console, refresh_per_second=REFRESH_PER_SECOND):
            yield
    finally:
        if not console.is_terminal:
            console.line()  # a terminal gets it from the live view
        watched.reset(token)


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
        for stage in self._run.stages.values():
            table.add_row(*self._row(stage))
        yield table

    def _row(self, stage: StageProgress) -> tuple[Text | Spinner, Text, ProgressBar, Text]:
        mark, style = MARKS.get(stage.state, ("", ""))
        return (
            Text(mark, style) if mark else self._spinner,
            Text(stage.name, "dim" if stage.state == "waiting" else "bold"),
            ProgressBar(total=1.0, completed=stage.fraction, width=24),
            Text("" if stage.state == "waiting" else stage.describe(), "dim" if stage.state == "done" else ""),
        )
