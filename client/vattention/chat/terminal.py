"""A chat in the terminal, or line by line without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper

from rich.console import Console
from rich.text import Text

from vatt.errors import VattError
from vattention.chat.answer import Answer, FinishReason
from vattention.chat.conversation import Conversation
from vattention.chat.engine import ChatEngine
from vattention.chat.flow import Flow
from vattention.chat.prompt import USER
from vattention.chat.sampling import Sampling
from vattention.chat.stats import ChatStats

HELP = """\
/new       begin another conversation
/list      the conversations, and how much of each is mapped
/switch N  go on with conversation N
/stats     what all of them hold, against a static reservation
/help      this
/quit      end the chat, as Ctrl-D does
Ctrl-C     end an answer that is being written"""


@dataclass(slots=True)
class Command:
    """What can be typed after a slash; `argument` is its name where it takes one."""

    run: Callable[[str], None]
    argument: str = ""


class Terminal:
    """Reads lines, and answers each in the conversation that is current.

    With a terminal it shows a prompt and, dimly, what each answer took. Without one, standard output has answers and
    what commands were asked for, and standard error what went wrong.
    """

    def __init__(self, engine: ChatEngine, sampling: Sampling, system: str | None = None) -> None:
        self._engine = engine
        self._sampling = sampling
        self._system = system
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._out = Console(highlight=False)
        self._notes = self._out if self._is_terminal else Console(highlight=False, stderr=True)
        self._conversations = [engine.new_conversation(system)]
        self._current = 0
        self._succeeded = True
        self._is_over = False
        self._commands = {
            "new": Command(self._new),
            "list": Command(self._list),
            "switch": Command(self._switch, "N"),
            "stats": Command(self._stats),
            "help": Command(self._help),
            "quit": Command(self._quit),
        }

    def run(self) -> bool:
        """Until the input ends, or /quit. False if a line was refused, or an answer ended for want of something."""
        if self._is_terminal:
            context = f"{self._engine.max_context_length} tokens of context"
            self._note(f"{self._engine.model_name}, {context}; /help for more")
        for line in self._lines():
            text = line.strip()
            if text.startswith("/"):
                self._obey(text)
            elif text:
                self._answer(text)
            if self._is_over:
                break
        return self._succeeded

    def _lines(self) -> Iterator[str]:
        if not self._is_terminal:
            if isinstance(sys.stdin, TextIOWrapper):
                sys.stdin.reconfigure(errors="replace")
            yield from sys.stdin
            return
        import readline  # noqa: F401  importing it gives input() a history, and keys that edit

        while True:
            try:
                yield input(f"\n{self._current + 1}> ")
            except KeyboardInterrupt:
                self._out.print()
                self._note("Ctrl-D or /quit ends the chat")
            except EOFError:
                self._out.print()
                return

    # Answers

    def _answer(self, text: str) -> None:
        began_s = time.monotonic()
        try:
            answer = self._conversation.say(text, self._sampling)
            self._show(answer)
        except BrokenPipeError:  # nobody reads any more
            raise
        except Exception as error:  # noqa: BLE001  whatever a model may raise ends this answer, and not the chat
            self._refuse(f"{error}" if isinstance(error, VattError) else f"the answer failed: {error!r}")
            return
        except KeyboardInterrupt:  # before the answer began
            self._note("ended by Ctrl-C")
            return
        self._sum_up(answer, time.monotonic() - began_s)

    def _show(self, answer: Answer) -> None:
        """Write it as it comes; Ctrl-C ends it where it is."""
        flow = Flow(self._write, self._out.width if self._is_terminal else None)
        try:
            for piece in answer:
                flow.add(piece)
        except KeyboardInterrupt:
            answer.cancel()
            answer.wait()
        finally:
            flow.finish()
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _sum_up(self, answer: Answer, took_s: float) -> None:
        finish, counts = answer.finish, answer.counts
        if finish is None:
            return
        if finish.reason is FinishReason.MEMORY:
            self._refuse(f"{'cut short' if counts.generated else 'no answer'}: {finish.detail}")
        elif finish.reason is FinishReason.LENGTH:
            self._note(f"cut short: {finish.detail}")
        elif finish.reason is FinishReason.CANCELLED:
            self._note("ended by Ctrl-C")
        if self._is_terminal:
            rate = counts.generated / took_s if took_s else 0.0
            prompt = f"prompt: {counts.prefilled} computed, {counts.reused} mapped already"
            self._note(f"{counts.generated} tokens, {rate:.1f} a second; {prompt}")

    # Commands

    def _obey(self, text: str) -> None:
        name, _, argument = text[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._refuse(f"/{name} is no command: /help lists them")
        elif bool(argument.strip()) != bool(command.argument):
            self._refuse(f"type /{name} {command.argument}".rstrip())
        else:
            command.run(argument.strip())

    def _new(self, _argument: str) -> None:
        self._conversations.append(self._engine.new_conversation(self._system))
        self._current = len(self._conversations) - 1
        self._note(f"conversation {self._current + 1}")

    def _list(self, _argument: str) -> None:
        self._out.print("   messages  tokens mapped  begins")
        for number, conversation in enumerate(self._conversations):
            said = (message.content for message in conversation.messages if message.role == USER)
            mark = "*" if number == self._current else " "
            counts = f"{len(conversation.messages):8}  {conversation.cached_tokens:13}"
            line = Text(f"{mark}{number + 1:<2}{counts}  {next(said, '-')}")
            line.truncate(self._out.width, overflow="ellipsis")
            self._out.print(line)

    def _switch(self, argument: str) -> None:
        if not argument.isdecimal() or not 1 <= int(argument) <= len(self._conversations):
            self._refuse(f"there is no conversation {argument}: type /switch 1 to {len(self._conversations)}")
            return
        self._current = int(argument) - 1
        self._note(f"conversation {argument}: {len(self._conversation.messages)} messages")

    def _stats(self, _argument: str) -> None:
        self._out.print(_stats_lines(self._engine.stats()), markup=False)

    def _help(self, _argument: str) -> None:
        self._out.print(HELP, markup=False)

    def _quit(self, _argument: str) -> None:
        self._is_over = True

    # Inside

    @property
    def _conversation(self) -> Conversation:
        return self._conversations[self._current]

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim", markup=False)

    def _refuse(self, text: str) -> None:
        self._succeeded = self._is_terminal and self._succeeded
        self._notes.print(text, style="red", markup=False)


def _stats_lines(stats: ChatStats) -> str:
    held = f"{stats.optimized_memory_mb:.2f} MiB, {100 * stats.utilization:.0f} % of it filled by tokens"
    computed = f"of prompts {stats.prefilled_tokens_total} computed, {stats.reused_tokens_total} mapped already"
    figures = {
        stats.cache: held,
        "baseline": f"{stats.baseline_memory_mb:.2f} MiB, {stats.baseline}",
        "saved": f"{stats.memory_saved_mb:.2f} MiB, {stats.memory_savings_percent:.1f} %",
        "conversations": f"{stats.slots_held} of {stats.slot_count} slots, {stats.cached_tokens} tokens",
        "tokens": f"{stats.generated_tokens_total} written; {computed}",
        "given up": f"{stats.given_up_total} times a conversation's slot, for others",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in figures.items())
