"""The status page: one HTML document with its style and script inside, and what it shows as JSON."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from vattd.site import Content, Pages
from vattd.status_feed import StatusFeed

# In this order: the scripts are one module in the page, and each uses what those before it define.
SCRIPTS = ("format.js", "colors.js", "dom.js", "health.js", "page_map.js", "charts.js", "tables.js", "page.js")


def pages_of(feed: StatusFeed) -> Pages:
    return {"/": page, "/status.json": feed.status_json, "/healthz": feed.health}


@cache
def page() -> Content:
    """Always the same: all that changes it fetches."""
    files = resources.files(__name__)
    style = files.joinpath("page.css").read_text()
    script = "".join(files.joinpath(name).read_text() for name in SCRIPTS)
    html = files.joinpath("index.html").read_text().replace("/* style */", style).replace("/* script */", script)
    return Content.of(html.encode(), "text/html; charset=utf-8", ("Content-Security-Policy", _policy(style, script)))


def _policy(style: str, script: str) -> str:
    """This very style and script, and JSON from where the page came from; no markup made of strings."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
