"""All dashboards, and the files that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.dashboards.board import Board
from deploy.dashboards.console import console_page
from deploy.dashboards.fleet import fleet
from deploy.dashboards.gpu import gpu
from deploy.dashboards.tenant import tenant

DEPLOY = Path(__file__).parent.parent
GRAFANA_DIR = DEPLOY / "grafana"
CONSOLE_DIR = DEPLOY / "prometheus" / "consoles"


def boards() -> list[Board]:
    return [fleet(), gpu(), tenant()]


def files() -> dict[Path, str]:
    """What each generated file should hold."""
    models = [board.to_json() for board in boards()]
    links = [(model["uid"], model["title"]) for model in models]
    made = {}
    for model in models:
        made[GRAFANA_DIR / f"{model['uid']}.json"] = json.dumps(model, indent=2, ensure_ascii=False) + "\n"
        made[CONSOLE_DIR / f"{model['uid']}.html"] = console_page(model, links)
    return made
