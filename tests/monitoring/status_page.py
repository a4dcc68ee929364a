"""Pictures of a running vattd's status page, for the docs and for whoever wants to look."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.monitoring.chromium import Look, opened

LOOKS = {
    "status-page-light": Look(),
    "status-page-dark": Look(dark=True),
    "status-page-phone": Look(width=390, height=844, phone=True),
    "status-page-phone-dark": Look(width=390, height=844, phone=True, dark=True),
}


def take_screenshot(url: str, path: Path, look: Look) -> None:
    """A PNG of the whole page at this address, once it shows figures. Raises Refused where there is no Chromium."""
    with opened(url, look) as page:
        page.wait_until("!document.querySelector('main').hidden")
        page.screenshot(path)


if __name__ == "__main__":
    for name, look in LOOKS.items():
        take_screenshot(sys.argv[1], Path(sys.argv[2]) / f"{name}.png", look)
