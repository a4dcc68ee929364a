"""A session with the vattd that all tests of the library share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vattention.session import Session


@pytest.fixture
def session(vattd_socket_dir: Path) -> Iterator[Session]:
    with Session.connect("integrations", socket_dir=vattd_socket_dir) as session:
        yield session


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small a second thread gains nothing, and waits for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
