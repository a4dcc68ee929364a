"""The list of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from deploy.screenshots.scene import Scene
from tests.monitoring.chromium import Look, opened


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


def in_few_colours(path: Path) -> None:
    """A third of the size, and no difference to see."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


SHOTS = [
    Shot("dashboard-fleet", console("vattd-fleet", 1890)),
    Shot("dashboard-gpu", console("vattd-gpu", 1815)),
    Shot("dashboard-tenant", console("vattd-tenant", 1580, tenant="chat")),
    Shot("console-tenant-dark", console("vattd-tenant", 1580, tenant="code", dark=True)),
]
