from __future__ import annotations

from pathlib import Path

import pytest

import vattention
from vatt.errors import DaemonUnreachable, InvalidRequest
from vattention.config import ClientConfig, read_config
from vattention.session import Session


def test_the_environment_says_where_vattd_is() -> None:
    assert read_config({"VATTD_SOCKET_DIR": "/somewhere"}) == ClientConfig((Path("/somewhere"),))
    assert read_config({"VATTD_SOCKET_DIR": "/s", "VATTENTION_DAEMON": "embedded"}).embedded


def test_a_word_that_means_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="VATTENTION_DAEMON"):
        read_config({"VATTENTION_DAEMON": "yes"})


def test_without_vattd_the_error_says_how_to_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VATTD_SOCKET_DIR", str(tmp_path))
    monkeypatch.delenv("VATTENTION_DAEMON", raising=False)
    with pytest.raises(DaemonUnreachable, match="vattd start"):
        Session.connect("t")
    with pytest.raises(DaemonUnreachable, match="vattd start --gpu host"):
        Session.connect("t", device="host", socket_dir=tmp_path / "none")


def test_a_socket_that_nobody_listens_on_is_an_unreachable_daemon(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "engine.sock").touch()
    with pytest.raises(DaemonUnreachable, match="vattd start"):
        Session.connect("t", socket_dir=tmp_path)


def test_every_name_of_the_face_can_be_had_and_others_cannot() -> None:
    for name in vattention.__all__:
        assert getattr(vattention, name) is not None
        assert name in dir(vattention)
    with pytest.raises(AttributeError):
        vattention.Nonsense  # noqa: B018
