"""A man page, in the man macros of groff and mandoc."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manual.page import Entry, Page, Paragraph


def man_page(page: Page, version: str, others: Sequence[Page]) -> str:
    """`others` are the pages of the same command. No date: the same commands make the same page."""
    head = f'.TH "{page.dashed.upper()}" "1" "" "vattd {version}" "User Commands"'
    # Spaces of one width: what stands here is copied.
    return "\n".join([head, ".ad l", *_body(page, others)]) + "\n"


def _body(page: Page, others: Sequence[Page]) -> Iterator[str]:
    yield from [".SH NAME", f"{_text(page.dashed)} \\- {_text(page.summary)}"]
    words = page.usage.removeprefix(page.name)
    yield from [".SH SYNOPSIS", f".B {_text(page.name)}", *([_text(words.strip())] if words else [])]
    yield ".SH DESCRIPTION"
    yield from _paragraphs(page.description)
    for title, entries in (("COMMANDS", page.commands), ("OPTIONS", page.options)):
        if entries:
            yield from [f".SH {title}", *(line for one in entries for line in _entry(one))]
    if page.notes:
        yield from [".SH NOTES", *_paragraphs(page.notes)]
    if page.examples:
        yield from [".SH EXAMPLES", *_verbatim(page.examples)]
    names = sorted(one.dashed for one in others if one != page)
    if names:
        yield from [".SH SEE ALSO", *(rf".BR \%{_text(name)} (1){',' * (name != names[-1])}" for name in names)]


def _paragraphs(paragraphs: Sequence[Paragraph]) -> Iterator[str]:
    for at, one in enumerate(paragraphs):
        if at:
            yield ".PP"
        yield from _verbatim(one.lines) if one.is_verbatim else [_text(one.text)]


def _entry(entry: Entry) -> list[str]:
    """What is typed as it stands is bold, what stands for something is slanted."""
    words = [rf"\f{'B' if word.startswith('-') else 'I'}{_text(word)}\fR" for word in entry.term.split()]
    return [".TP", " ".join(words), _text(entry.words)]


def _verbatim(lines: Sequence[str]) -> list[str]:
    """Less indented than the rest: a line of 76 columns, as --help has them, fits a terminal."""
    return [".in 4n", ".EX", *(_text(line) for line in lines), ".EE", ".in"]


def _text(words: str) -> str:
    """As it is: no requests, no escapes, and hyphens that can be copied."""
    escaped = words.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped
