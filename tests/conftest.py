"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=3.0, help="How long two engines share a pool.")
    parser.addoption("--kills", type=int, default=12, help="How many engines are killed on each backend.")
