"""The forms of PromQL that panels repeat."""

from __future__ import annotations

SECONDS = "$__rate_interval"


def rate(metric: str, where: str, by: str = "") -> str:
    """How fast a counter rises, a second; summed, over all or by a label."""
    return _summed(f"rate({metric}{{{where}}}[{SECONDS}])", by)


def quantile(part: float, metric: str, where: str, by: str = "") -> str:
    """Of a histogram in seconds."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({part}, {_summed(f'rate({metric}_bucket{{{where}}}[{SECONDS}])', labels)})"


def rate_of_bytes(metric: str, where: str, by: str = "") -> str:
    """Of a counter of pages, which have another size in each vattd."""
    size = "on (instance) group_left () max by (instance) (vattd_page_size_bytes)"
    return _summed(f"rate({metric}{{{where}}}[{SECONDS}]) * {size}", by)


def or_zero(expr: str) -> str:
    """What may well have no series yet: nothing has happened then, which is a 0 and no gap."""
    return f"({expr}) or vector(0)"


def or_none(expr: str, *labels: str) -> str:
    """The same of what is split by labels: they say `none`."""
    nothing = "vector(0)"
    for label in labels:
        nothing = f'label_replace({nothing}, "{label}", "none", "", "")'
    return f"({expr}) or on () {nothing}"


def _summed(expr: str, by: str) -> str:
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"
