"""A fixture for tests of small models: a test module or a conftest imports it, and it holds for all that is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small a second thread gains nothing, and waits for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
