"""Sizes as people write them: `8GiB`, `8G`, `8gb`, `1.5GiB`, `65536`; all binary, since memory is."""

from __future__ import annotations

import re

from vatt.errors import InvalidRequest

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?)I?B?\s*", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")


def parse_size(text: str) -> int:
    """Bytes. Raises InvalidRequest with an example."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{text!r} is not a size: write for example 8GiB, 512MiB or 65536")
    return (
        int(float(match[1]) * _UNITS[match[2].upper()]) if "." in match[1] else int(match[1]) * _UNITS[match[2].upper()]
    )


def parse_size_or_percent(text: str, whole_bytes: int) -> int:
    """Bytes, of `whole_bytes` if the text is a percentage. Raises InvalidRequest with an example."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        if "%" in text:
            raise InvalidRequest(f"{text!r} is not a percentage: write for example 50%")
        return parse_size(text)
    if float(match[1]) > 100:
        raise InvalidRequest(f"{text!r} is more than 100%")
    return int(whole_bytes * float(match[1]) / 100)


def parse_part(text: str, pool_bytes: int, page_size_bytes: int) -> int:
    """Bytes of a pool. A percentage is of it and in whole pages, at least one, so that parts of 100% fit it together.

    Raises InvalidRequest with an example, also for a number below a page: then its unit was forgotten.
    """
    size_bytes = parse_size_or_percent(text, pool_bytes)
    if "%" in text:
        is_zero = not parse_size_or_percent(text, 1 << 60)
        return 0 if is_zero else max(page_size_bytes, size_bytes // page_size_bytes * page_size_bytes)
    if 0 < size_bytes < page_size_bytes and text.strip().isdigit():
        raise InvalidRequest(
            f"{text!r} is {size_bytes} bytes, and a page has {format_size(page_size_bytes)}: write for example "
            f"{size_bytes}GiB"
        )
    return size_bytes


def format_size(size_bytes: int) -> str:
    """For people: three figures and an IEC unit, `1.50 GiB`."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    if unit == "B":
        return f"{size_bytes} B"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"
