"""Pages to test with: of a host driver in this process, or of a vattd of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Vattd
from tests.vattention.host_pages import HostPages

POOL_BYTES = 64 << 20


@pytest.fixture(scope="session")
def vattd_socket_dir() -> Iterator[Path]:
    """The socket directory of a vattd for host memory that all tests share."""
    with Vattd("--pool-max", str(POOL_BYTES)) as vattd:
        yield vattd.socket_dir


@pytest.fixture
def own_vattd() -> Iterator[Vattd]:
    """A vattd that the test may stop."""
    with Vattd("--pool-max", str(POOL_BYTES)) as vattd:
        yield vattd


@pytest.fixture
def host_pages() -> Iterator[HostPages]:
    pages = HostPages()
    yield pages
    pages.close()
