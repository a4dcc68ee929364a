"""A language model that holds several conversations at a time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from vatt.errors import Closed, InvalidRequest
from vattention.chat.answer import Answer
from vattention.chat.conversation import GREEDY, Conversation
from vattention.chat.draft import Draft
from vattention.chat.language_model import LanguageModel
from vattention.chat.memory import LentMemory, Memory, OwnMemory
from vattention.chat.prefix import Prefix
from vattention.chat.prompt import Message, Written
from vattention.chat.sampling import Sampling
from vattention.chat.scheduler import Scheduler
from vattention.chat.stats import ChatStats
from vattention.chat.worker import Worker
from vattention.integers import as_integer
from vattention.layout import Layout
from vattention.session import Session, SessionState

DEFAULT_CONVERSATIONS = 16
DEFAULT_MAX_WAITING = 64


class ContextFull(InvalidRequest):
    """The prompt leaves no room for an answer: begin a new conversation, or send less of the old one."""

    def __init__(self, prompt_tokens: int, max_context_length: int) -> None:
        super().__init__(
            f"the conversation is {prompt_tokens} tokens long and the context holds {max_context_length}, the answer "
            "included: begin a new one, or send fewer messages"
        )
        self.prompt_tokens, self.max_context_length = prompt_tokens, max_context_length


class ChatEngine:
    """Answers conversations with a causal language model of transformers'.

    Keys and values lie in pages of the vattd of that device, or, without vattention, in transformers' DynamicCache:
    everything else is the same, for comparison. One thread of the engine's computes; answers are written a token each
    in turn. All methods may be called from any thread.
    """

    def __init__(
        self,
        model_name: str = "microsoft/phi-2",
        vattention_enabled: bool = True,
        device: str = "cpu",
        *,
        dtype: torch.dtype | None = None,
        tenant: str = "chat",
        max_conversations: int = DEFAULT_CONVERSATIONS,
        max_context_length: int | None = None,
        max_waiting: int = DEFAULT_MAX_WAITING,
        layout: Layout | None = None,
        socket_dir: Path | str | None = None,
    ) -> None:
        """`model_name`: on the Hugging Face Hub, or a folder. `device`: cpu, cuda, or cuda:N.

        `dtype` None is that of the model's file. `max_conversations` can hold memory at a time; others begin anew at
        their next turn. `max_context_length` in tokens, None: the model's own. `max_waiting` answers wait for their
        turn; more are refused. `tenant`, `layout` and `socket_dir` are those of Session.connect and KVCacheSpec.

        Raises InvalidRequest for what makes no sense, and what Session.connect does.
        """
        if as_integer(max_conversations, "max_conversations") < 1 or as_integer(max_waiting, "max_waiting") < 1:
            raise InvalidRequest("max_conversations and max_waiting are 1 or more")
        place = _place(device)
        with ExitStack() as undo:
            session: Session | None = None
            if vattention_enabled:  # first: loading a model takes a while
                session = Session.connect(tenant, device=_vattd_device(place), socket_dir=socket_dir)
                undo.callback(session.close)
            self._model = LanguageModel.load(model_name, place, dtype)
            context_length = _context_length(self._model, max_context_length)
            memory: Memory
            if session is not None:
                memory = LentMemory(self._model.model, session, max_conversations, context_length, layout)
            else:
                memory = OwnMemory(self._model.model, max_conversations, context_length)
            undo.callback(memory.close)
            self._memory = memory
            self._numbers = itertools.count()
            self._scheduler = Scheduler(memory, max_waiting)
            self._worker = Worker(self._scheduler)
            undo.callback(self._worker.close)
            if session is not None:
                session.on_pressure = self._give_up_pages
            self._closing = threading.Lock()
            self._close = undo.pop_all()
        self._session = session
        self._cache_name = "vattention" if vattention_enabled else "DynamicCache"
        self.most_answers = max_conversations + max_waiting  # that are written or wait at a time

    @property
    def model_name(self) -> str:
        return self._model.name

    @property
    def max_context_length(self) -> int:
        return self._memory.max_context_length

    @property
    def session_state(self) -> SessionState | None:
        """Of the session with vattd; None without vattention."""
        return self._session.state if self._session is not None else None

    @property
    def outage(self) -> str | None:
        """Why no answer can get memory here any more, and what helps; None as long as one can, or may again."""
        if self._session is None:
            return None
        if self._session.state in (SessionState.LOST, SessionState.CLOSED):
            return f"the session with vattd is {self._session.state.value}: start anew"
        if self._session.evicted:
            return "an operator asked this session to leave (`vattctl evict`): start anew"
        return None

    @property
    def has_chat_template(self) -> bool:
        """False: the plain format of vattention.chat.prompt is used."""
        return self._model.format.has_template

    def new_conversation(self, system: str | None = None) -> Conversation:
        """An empty conversation, with a system message if one is given."""
        prefix = self._worker.call(lambda: self._scheduler.new_prefix(is_owned=True))
        return Conversation(self, prefix, system)

    def answer(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Answer:
        """Answer the last of these messages. What an idle earlier prompt or answer begins with as well is not computed
        again. Raises as Conversation.say does."""
        return self._begin(self._model.format.write(messages), sampling, None)

    def answer_in(
        self, prefix: Prefix, messages: Sequence[Message], known: Written | None, sampling: Sampling
    ) -> Answer:
        """For Conversation: answer from its own prefix; `known` is what it was left with by the last answer."""
        return self._begin(self._model.format.write(messages, known), sampling, prefix)

    def forget(self, prefix: Prefix) -> None:
        """For Conversation: it is over."""
        try:
            self._worker.call(lambda: self._scheduler.forget(prefix))
        except Closed:  # and all memory is given back
            return

    def stats(self) -> ChatStats:
        """What is held now and what was done; waits for the step that is under way."""
        return self._worker.call(self._stats)

    def close(self) -> None:
        """End every answer, give all memory back and detach from vattd. Idempotent; whoever calls waits until it is
        done."""
        with self._closing:  # in order: nothing is unmapped before the thread that computes has ended
            self._close.close()

    def __enter__(self) -> ChatEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, prompt: Written, sampling: Sampling, prefix: Prefix | None) -> Answer:
        if not prompt.length:
            raise InvalidRequest("the prompt is empty: say something")
        if prompt.length >= self.max_context_length:
            raise ContextFull(prompt.length, self.max_context_length)
        answer = Answer(self._cancel)

        def begin() -> None:
            draft = Draft(next(self._numbers), prompt, sampling, self._model, self._memory, answer)
            self._scheduler.begin(draft, prefix)

        try:
            self._worker.call(begin)
        except BaseException:  # an interrupt of the caller's too: nobody has the answer
            answer.cancel()
            raise
        return answer

    def _cancel(self, answer: Answer) -> None:
        self._worker.post(lambda: self._scheduler.cancel(answer))

    def _give_up_pages(self, page_count: int) -> None:
        """vattd wants pages back that conversations hold."""
        try:
            self._worker.call(lambda: self._scheduler.give_up_pages(page_count))
        except Closed:
            return

    def _stats(self) -> ChatStats:
        prefixes = self._scheduler.prefixes
        return ChatStats.of(
            self._memory.report([prefix.cache for prefix in prefixes]),
            self._scheduler.totals,
            cache=self._cache_name,
            slot_count=self._memory.slot_count,
            prefix_lengths=[prefix.length for prefix in prefixes],
            running=self._scheduler.running_count,
            waiting=self._scheduler.waiting_count,
        )


def _place(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidRequest(f"device is {device!r}: give cpu, cuda, or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise InvalidRequest(f"device is {device!r}: give cpu, cuda, or cuda:N")
    if place.type == "cpu":
        return place
    if not torch.cuda.is_available():
        raise InvalidRequest(f"device is {device!r}, and this torch sees no GPU: give cpu, or install torch for CUDA")
    return torch.device("cuda", place.index if place.index is not None else torch.cuda.current_device())


def _vattd_device(place: torch.device) -> str:
    """As vattd names it."""
    return "host" if place.type == "cpu" else f"GPU-{torch.cuda.get_device_properties(place).uuid}"


def _context_length(model: LanguageModel, asked: int | None) -> int:
    most = model.context_length
    if asked is None:
        if most is None:
            raise InvalidRequest(
                f"{model.name} does not say how long its context is: give max_context_length, or --max-context"
            )
        return most
    if as_integer(asked, "max_context_length") < 2:
        raise InvalidRequest(f"max_context_length is {asked}: a prompt and an answer need 2 tokens at least")
    if most is not None and asked > most:
        raise InvalidRequest(f"max_context_length is {asked}: {model.name} was made for 2 to {most} tokens")
    return asked
