"""A session with the vattd that all tests of the library share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vattention.session import Session


@pytest.fixture
def session(vattd_socket_dir: Path) -> Iterator[Session]:
    with Session.connect("integrations", socket_dir=vattd_socket_dir) as session:
        yield session
