"""A session with the vattd that all tests of the library share, and caches of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.one_thread import one_thread as one_thread
from vattention.integrations.transformers import VattCache
from vattention.layout import Layout
from vattention.session import Session

MakeCache = Callable[..., VattCache]


@pytest.fixture
def session(vattd_socket_dir: Path) -> Iterator[Session]:
    with Session.connect("integrations", socket_dir=vattd_socket_dir) as session:
        yield session


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def layout(request: pytest.FixtureRequest) -> Layout:
    chosen: Layout = request.param
    return chosen


@pytest.fixture
def make_cache(session: Session, layout: Layout) -> Iterator[MakeCache]:
    """Makes caches for a model, of four rows unless asked otherwise, and closes them."""
    made: list[VattCache] = []

    def make(model: PreTrainedModel, **options: Any) -> VattCache:
        made.append(VattCache.for_model(model, session, layout=layout, **{"max_batch_size": 4, **options}))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
