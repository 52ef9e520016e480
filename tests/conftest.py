"""Fixtures for tests in several folders."""

from __future__ import annotations

import pytest
from running import Recorded


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()
