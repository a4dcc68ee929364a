"""What stands in cells of tables: figures, and "-" or grey where there is nothing to say."""

from __future__ import annotations

from rich.text import Text

from vatt.sizes import format_size
from vattctl.top.marks import Mark


def named(name: str, owner: Mark, *, letters: bool) -> Text:
    """After the mark of the tenant that it belongs to."""
    return Text.assemble((owner.letter, owner.style if letters else owner.on_style), " ", name)


def nothing() -> Text:
    return Text("-", "dim")


def size(size_bytes: int) -> Text:
    return Text(format_size(size_bytes), "" if size_bytes else "dim")


def part(share: float | None) -> Text:
    """None: of nothing."""
    return nothing() if share is None else Text(f"{share:.0%}")


def rate(per_s: float | None) -> Text:
    """None: not measured."""
    if per_s is None:
        return nothing()
    return Text(f"{per_s:.1f}" if per_s < 1000 else f"{per_s:,.0f}") if per_s else Text("0", "dim")


def size_rate(per_s: float | None) -> Text:
    return nothing() if per_s is None else size(round(per_s))
