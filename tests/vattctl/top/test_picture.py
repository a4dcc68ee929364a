"""The picture in the docs is of what is there."""

from __future__ import annotations

from pathlib import Path

from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from tests.vattctl.top.picture import take_picture
from vattctl.top.marks import mark


def test_a_picture_shows_a_real_vattd_in_its_tenants_colours(tmp_path: Path) -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(512)
        path = tmp_path / "top.svg"
        width, height = take_picture(vattd.socket_dir, path, 80, 24, seconds=1.0)
        engine.detach()
    svg = path.read_text()
    assert width > height > 400
    assert "vattctl" in svg
    assert engine.key.session_id in svg
    assert mark(0).style == "color(33)"
    assert "#0087ff" in svg, "which is colour 33"
    assert "@font-face" not in svg, "nothing is fetched"
