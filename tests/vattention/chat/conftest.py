"""Tiny chat models, and engines that end with their test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.daemon import Vattd
from tests.one_thread import one_thread as one_thread
from tests.vattention.chat.tiny_chat import save_model
from vattention.chat import ChatEngine

MakeEngine = Callable[..., ChatEngine]
SlowDown = Callable[[ChatEngine], threading.Event]

# Pages that hold 32 tokens of a tensor of the tiny llama, which has four: 1,024 tokens in all.
SMALL_PAGE_BYTES = 4096
SMALL_POOL_BYTES = 128 * SMALL_PAGE_BYTES


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has a chat template."""
    return save_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has none."""
    return save_model(tmp_path_factory.mktemp("phi"), "phi")


@pytest.fixture(params=["llama", "phi"])
def family(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def make_engine(vattd_socket_dir: Path) -> Iterator[MakeEngine]:
    """Engines of the vattd that all tests share, unless asked otherwise."""
    made: list[ChatEngine] = []

    def make(folder: Path, **options: Any) -> ChatEngine:
        made.append(ChatEngine(str(folder), **{"socket_dir": vattd_socket_dir, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def slow_down(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDown]:
    """Makes an engine's steps take 20 ms each, until the event is set: long enough to do something meanwhile."""
    made: list[threading.Event] = []

    def slow_down(engine: ChatEngine) -> threading.Event:
        full_speed = threading.Event()
        logits_after = engine._model.logits_after

        def slow_logits_after(*arguments: Any) -> torch.Tensor:
            full_speed.wait(0.02)
            return logits_after(*arguments)

        monkeypatch.setattr(engine._model, "logits_after", slow_logits_after)
        made.append(full_speed)
        return full_speed

    yield slow_down
    for full_speed in made:
        full_speed.set()


@pytest.fixture
def small_vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", str(SMALL_POOL_BYTES), "--page-size", str(SMALL_PAGE_BYTES)) as vattd:
        yield vattd
