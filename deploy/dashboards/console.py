"""A dashboard as a console template: one file that Prometheus serves, with nothing beside it.

The page draws Grafana's model of the dashboard from Prometheus's own API, so there is one source of panels and queries.
Prometheus expands `{{` in whatever it serves; all that we want of that is its path prefix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

PAGE_DIR = Path(__file__).parent / "page"
SCRIPTS = ["chart.js", "panels.js", "console.js"]

# Pages of a pool. Without an icon of its own, browsers ask Prometheus for one that it does not have.
_ICON = quote(
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><path fill='#4a7fd6' d='M1 1h6v6H1zM9 9h6v6H9z'/>"
    "<path fill='#3f9e6a' d='M9 1h6v6H9z'/><path fill='#b6bdc7' d='M1 9h6v6H1z'/></svg>",
    safe="/:='",
)

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:image/svg+xml,{icon}">
<!-- Generated from deploy/dashboards by `make dashboards`: do not edit. -->
<style>
{style}</style>
</head>
<body>
<header><noscript>This console is drawn by its script.</noscript></header>
<main></main>
<footer>Panels explain themselves under “?”. The same dashboards for Grafana are in deploy/grafana.</footer>
<script type="application/json" id="dashboard">{model}</script>
<script>
const PREFIX = {{{{ pathPrefix }}}};
const BOARDS = {links};
{script}</script>
</body>
</html>
"""


def console_page(model: dict[str, Any], links: Sequence[tuple[str, str]]) -> str:
    """`links` are uid and title of all consoles."""
    return _PAGE.format(
        title=model["title"],
        icon=_ICON,
        style=(PAGE_DIR / "style.css").read_text(),
        model=_escaped(json.dumps(_drawn(model), separators=(",", ":"), ensure_ascii=False)),
        links=json.dumps([{"uid": uid, "title": title} for uid, title in links]),
        script="".join(_without_braces((PAGE_DIR / name).read_text()) for name in SCRIPTS),
    )


def _drawn(model: dict[str, Any]) -> dict[str, Any]:
    """Without what the page does not look at."""
    return {key: model[key] for key in ("uid", "title", "time", "templating", "panels")}


def _escaped(text: str) -> str:
    """JSON that neither Go's templates nor HTML take for their own."""
    return text.replace("{{", "\\u007b\\u007b").replace("<", "\\u003c")


def _without_braces(script: str) -> str:
    if "{{" in script:
        raise ValueError("a script with {{ in it would be expanded by Prometheus")
    return script
