"""A picture of `vattctl top`, of a vattd that runs: `python -m tests.vattctl.top.picture SOCKET_DIR FILE.svg`.

As an SVG, which any browser makes a PNG of; on a terminal of 256 colours, without a window.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from vatt.sockets import find_daemons
from vattctl.top.app import Top

COLOURS = {"TEXTUAL_COLOR_SYSTEM": "256"}


def take_picture(socket_dir: Path, path: Path, columns: int, rows: int, *, seconds: float) -> tuple[int, int]:
    """After so many seconds, which curves need. Returns its width and height in pixels."""
    words = [str(socket_dir), str(path), "--columns", str(columns), "--rows", str(rows), "--seconds", str(seconds)]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    # A process of its own: textual reads its environment once.
    subprocess.run([sys.executable, "-m", __name__, *words], env={**environment, **COLOURS}, check=True)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', path.read_text())
    if size is None:
        raise AssertionError(f"{path} has no size")
    return round(float(size[1])), round(float(size[2]))


async def watch(socket_dir: Path, columns: int, rows: int, seconds: float) -> str:
    """An SVG."""
    found = find_daemons([socket_dir])
    top = Top(lambda: found, found, 1.0, letters=False)
    async with top.run_test(size=(columns, rows)) as pilot:
        await pilot.pause(seconds)
        svg = top.export_screenshot()
    # Fonts from a CDN: while a browser waits for them it shows no letters.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket_dir", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=45.0)
    chosen = parser.parse_args()
    chosen.path.write_text(asyncio.run(watch(chosen.socket_dir, chosen.columns, chosen.rows, chosen.seconds)))


if __name__ == "__main__":
    main()
