"""A fresh simulated machine per test."""

from collections.abc import Iterator

import pytest

from .world import World


@pytest.fixture
def world() -> Iterator[World]:
    """One GPU of 1 GiB."""
    with World() as world:
        yield world
