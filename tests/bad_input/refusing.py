"""What every refusal must be, whatever refuses."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flows.cli import BadParameters
from tasks.errors import EXIT_BAD_INPUT, BadInput

LONGEST_MESSAGE = 2500
LONGEST_SECONDS = 10.0
"""Far above what any takes, on a machine with other work; a reader that doesn't end would never come back."""


def refused(action: Callable[[], object], field: str, says: str = "") -> None:
    """``action`` is refused as bad input: at once, in one paragraph that names ``field``."""
    started = time.monotonic()
    with pytest.raises((BadInput, BadParameters)) as caught:
        action()
    message = str(caught.value)
    assert time.monotonic() - started < LONGEST_SECONDS
    assert caught.value.exit_status == EXIT_BAD_INPUT
    assert message.startswith((f"{field} = ", f"{field}: ")), f"{field} is not what is named: {message[:300]}"
    assert says in message
    assert len(message) < LONGEST_MESSAGE
    assert "Traceback" not in message
    assert "\n" not in message
    assert message.isprintable()
