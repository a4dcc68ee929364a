"""The sockets between a scheduler and its workers."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vatt.errors import InvalidRequest, VattError
from vattention.integrations.vllm.channel import Line, Port, socket_path
from vattention.integrations.vllm.messages import Depth, Wanted


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return socket_path("abc", 0, 1)


def answer(message: Any) -> object:
    if message == "refused":
        raise InvalidRequest("not that")
    if message == "broken":
        raise KeyError("a bug")
    return message


@pytest.fixture
def port(path: Path) -> Iterator[Port]:
    port = Port(path, answer)
    yield port
    port.close()


@pytest.mark.usefixtures("port")
def test_answers_and_errors_come_back_and_the_line_goes_on(path: Path) -> None:
    line = Line(path)
    assert line.call([1, 2]) == [1, 2]
    for message, error in (("refused", "not that"), ("broken", "KeyError")):
        with pytest.raises(VattError, match=error):
            line.call(message)
    assert line.call("still there") == "still there"
    line.close()


def test_who_subscribed_is_told_and_who_has_gone_is_forgotten(path: Path, port: Port) -> None:
    there, gone = Line(path), Line(path)
    hearing = there.subscribe()
    gone.subscribe().close()
    assert there is not gone
    Line(path).call("a round trip later both subscriptions may still be on their way")
    wanted = Wanted(1, 7, Depth.IDLE)
    while not hearing.poll():  # told to whoever is there by then
        port.tell(wanted)
    assert hearing.recv() == wanted


def test_a_worker_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no worker of this engine listens"):
        Line(path)


@pytest.mark.usefixtures("port")
def test_a_directory_that_others_may_write_to_is_refused(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(InvalidRequest, match="others may write to it"):
        Line(path)
    path.parent.chmod(0o700)


def test_the_last_rank_to_close_leaves_no_directory(path: Path) -> None:
    first, second = Port(path, answer), Port(path.with_name("rank-2.sock"), answer)
    first.close()
    assert path.parent.is_dir()
    second.close()
    assert not path.parent.exists()


def test_a_port_that_closes_hangs_up_on_everybody_and_leaves_no_thread(path: Path, port: Port) -> None:
    line, hearing = Line(path), Line(path).subscribe()
    assert line.call("there") == "there"
    port.close()
    with pytest.raises((EOFError, OSError)):
        line.call("still there?")
    with pytest.raises((EOFError, OSError)):
        hearing.recv()
    for thread in threading.enumerate():
        if thread.name in ("vattd-vllm-port", "vattd-vllm-serve"):
            thread.join(10)
            assert not thread.is_alive()
