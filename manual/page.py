"""What there is to say about one command, as data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

VERBATIM = "\b"  # begins a paragraph that click does not fill
EXAMPLES = ("Example:", "Examples:")


@dataclass(frozen=True, slots=True)
class Entry:
    """An option or a command, and its words."""

    term: str
    words: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text to be filled, or lines to be kept as they are."""

    lines: Sequence[str]
    is_verbatim: bool = False

    @property
    def text(self) -> str:
        return " ".join(self.lines)


@dataclass(frozen=True, slots=True)
class Page:
    """One command. `name` is what is typed: "vattctl reserve"."""

    name: str
    summary: str  # one line, without a full stop
    usage: str
    description: Sequence[Paragraph]
    examples: Sequence[str]
    options: Sequence[Entry]
    commands: Sequence[Entry]  # of a group
    notes: Sequence[Paragraph]  # what stands below the options

    @property
    def dashed(self) -> str:
        return self.name.replace(" ", "-")


def pages_of(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[Page]:
    """The command's, then those of its commands, in the order of --help. Hidden ones have none."""
    context = click.Context(command, parent, info_name=name, **command.context_settings)
    yield _page_of(command, context)
    for child_name, child in _commands_of(command, context):
        yield from pages_of(child, child_name, context)


def _page_of(command: click.Command, context: click.Context) -> Page:
    paragraphs = list(_paragraphs(command.help or ""))
    examples = [one for one in paragraphs if one.is_verbatim and one.lines[0] in EXAMPLES]
    options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    records = [one.get_help_record(context) for one in options]
    return Page(
        name=context.command_path,
        summary=command.get_short_help_str(limit=1000).rstrip("."),
        usage=" ".join([context.command_path, *command.collect_usage_pieces(context)]),
        description=[one for one in paragraphs if one not in examples],
        examples=[line[2:] for one in examples for line in one.lines[1:]],
        options=[Entry(term, " ".join(words.split())) for term, words in filter(None, records)],
        commands=[Entry(name, child.get_short_help_str(limit=1000)) for name, child in _commands_of(command, context)],
        notes=list(_paragraphs(command.epilog or "")),
    )


def _commands_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield name, child


def _paragraphs(text: str) -> Iterator[Paragraph]:
    for block in inspect.cleandoc(text).split("\n\n"):
        lines = block.strip("\n").split("\n")
        if lines[0] == VERBATIM:
            yield Paragraph(lines[1:], is_verbatim=True)
        elif any(lines):
            yield Paragraph([line.strip() for line in lines])
