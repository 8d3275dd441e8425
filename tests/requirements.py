"""What a test needs beyond Python packages: absent, it skips, unless ``REQUIRE`` names it, then it fails.

``REQUIRE=s3,browser`` is set where everything must run.
"""

from __future__ import annotations

import os

import pytest


def need(feature: str, present: bool, how: str) -> None:
    """Skip the test, or fail it when ``feature`` is in ``REQUIRE``, unless it is ``present``.

    ``how`` says what to do to have it.
    """
    if present:
        return
    reason = f"needs {feature}: {how}"
    if feature in os.environ.get("REQUIRE", "").split(","):
        pytest.fail(f"REQUIRE={os.environ['REQUIRE']}, but this test {reason}")
    pytest.skip(reason)
