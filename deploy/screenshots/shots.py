"""The list of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from deploy.screenshots.scene import Scene
from tests.monitoring.chromium import Look, opened
from tests.monitoring.status_page import LOOKS, take_screenshot
from tests.vattctl.top.picture import take_picture


@dataclass(frozen=True, slots=True)
class Shot:
    """`take` writes docs/screenshots/NAME.png."""

    name: str
    take: Callable[[Scene, Path], None]


def console(uid: str, height_px: int, *, tenant: str = "", dark: bool = False) -> Callable[[Scene, Path], None]:
    """Of a dashboard, as its console draws it: Grafana draws the same panels in its own way."""

    def take(scene: Scene, path: Path) -> None:
        chosen = {"var-tenant": tenant} if tenant else {}
        if uid == "vattd-gpu":
            chosen["var-instance"] = scene.places[0].address
        query = urlencode({**chosen, "from": "now-5m"})
        url = f"{scene.prometheus.url}/consoles/{uid}.html?{query}"
        with opened("about:blank", Look(width=1400, height=height_px, dark=dark)) as page:
            page.go(url)
            page.wait_until("'panels' in document.body.dataset")
            page.screenshot(path, whole=False)
        in_few_colours(path)

    return take


def status_page(look: str) -> Callable[[Scene, Path], None]:
    def take(scene: Scene, path: Path) -> None:
        take_screenshot(f"{scene.metrics_url}/", path, LOOKS[look])
        in_few_colours(path)

    return take


def top(columns: int, rows: int) -> Callable[[Scene, Path], None]:
    """Of `vattctl top` on a terminal of this size, after a while, so that its curves have something to show."""

    def take(scene: Scene, path: Path) -> None:
        drawn = path.with_suffix(".svg")
        width, height = take_picture(scene.socket_dir, drawn, columns, rows, seconds=40)
        with opened("about:blank", Look(width=width, height=height)) as page:
            page.go(drawn.as_uri())
            page.screenshot(path, whole=False)
        drawn.unlink()
        in_few_colours(path)

    return take


def in_few_colours(path: Path) -> None:
    """A third of the size, and no difference to see."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


SHOTS = [
    Shot("dashboard-fleet", console("vattd-fleet", 1890)),
    Shot("dashboard-gpu", console("vattd-gpu", 1815)),
    Shot("dashboard-tenant", console("vattd-tenant", 1580, tenant="chat")),
    Shot("console-tenant-dark", console("vattd-tenant", 1580, tenant="code", dark=True)),
    *(Shot(look, status_page(look)) for look in ("status-page-light", "status-page-dark", "status-page-phone")),
    Shot("top", top(80, 24)),
    Shot("top-wide", top(140, 40)),
]
