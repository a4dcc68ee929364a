"""Take the pictures: `python -m deploy.screenshots`, which is `make screenshots`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from deploy.screenshots.scene import scene
from deploy.screenshots.shots import SHOTS

OUT = Path(__file__).parents[2] / "docs" / "screenshots"


@click.command()
@click.option("--seconds", type=float, default=310.0, show_default=True, help="How long the engines run before.")
@click.option("--only", multiple=True, type=click.Choice([shot.name for shot in SHOTS]), help="May be given again.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, show_default=True)
def main(seconds: float, only: tuple[str, ...], out: Path) -> None:
    """Run vattd, engines and Prometheus for a while, then take every picture of docs/screenshots."""
    out.mkdir(parents=True, exist_ok=True)
    with scene() as running:
        click.echo(f"Running for {seconds:.0f} s: {running.prometheus.url}", err=True)
        time.sleep(seconds)
        for shot in SHOTS:
            if not only or shot.name in only:
                path = out / f"{shot.name}.png"
                path.unlink(missing_ok=True)
                shot.take(running, path)
                click.echo(path)


if __name__ == "__main__":
    main()
