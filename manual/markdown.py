"""docs/vattctl.md: all pages in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manual.page import Entry, Page, Paragraph

HEAD = """\
# Commands

Made from the commands themselves by `make man`; `--help` says the same. Completion in shells:
[`vattctl completion`](#vattctl-completion). What goes wrong in practice: [doctor.md](doctor.md).
"""


def markdown(pages: Sequence[Page]) -> str:
    blocks = [HEAD.rstrip(), *(block for page in pages for block in _page(page))]
    return "\n\n".join(blocks) + "\n"


def _page(page: Page) -> Iterator[str]:
    yield f"{'##' if page.commands else '###'} {page.name}"
    yield _code([page.usage])
    yield from (_paragraph(one) for one in page.description)
    if page.examples:
        yield _code(page.examples)
    if page.commands:
        yield "\n".join(f"- [`{one.term}`](#{page.dashed}-{one.term}): {_text(one.words)}" for one in page.commands)
    if page.options:
        yield "\n".join(_option(one) for one in page.options)
    yield from (_paragraph(one) for one in page.notes)


def _option(entry: Entry) -> str:
    return f"- `{entry.term}`" + (f": {_text(entry.words)}" if entry.words else "")


def _paragraph(one: Paragraph) -> str:
    return _code(one.lines) if one.is_verbatim else _text(one.text)


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```", *(line.rstrip() for line in lines), "```"])


def _text(words: str) -> str:
    return words.replace("<", "&lt;").replace("*", r"\*").replace("[default", r"\[default")
