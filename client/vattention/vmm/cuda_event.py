"""Fences on a GPU: a mark in what the device has been given to do, and a proof that asks whether it got there.

What the driver does, and this is built on:
- An event that is recorded stands for all that its stream, or its context, had been given until then. Asking for it
  blocks nobody. To record it later is always safe: it then stands for at least as much.
- The current context belongs to the thread, a background thread has none, and most of these calls need one.
- While a CUDA graph is captured in another thread, even a query may be refused and spoil the capture, unless the asking
  thread has said that it knows what it does (cuThreadExchangeStreamCaptureMode): all calls here say so.
- An event recorded in a stream that is being captured becomes part of the graph and marks nothing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from vatt.errors import DriverError, InvalidRequest
from vattention.vmm.cuda_call import bindings, call, call_at_close
from vattention.vmm.cuda_errors import error_of

_NOT_READY = "CUDA_ERROR_NOT_READY"
_CAPTURING = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"

# A graph is being captured: nothing can be marked until that is over.
_DURING_CAPTURE = frozenset({_CAPTURING, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "CUDA_ERROR_CAPTURED_EVENT"})

# No code: the driver has no function of that name.
_NO_SUCH_CALL = frozenset({"", "CUDA_ERROR_NOT_SUPPORTED"})

_PER_THREAD_STREAM = 2


class ContextFence:
    """Its proofs cover all that this process has submitted to a device's primary context, in whatever stream.

    Marking all of a context spoils any capture of a CUDA graph that goes on in it, and cuStreamIsCapturing tells of one
    stream only. So an engine that captures graphs while requests finish brings `stream_fence` of its compute stream.

    The context is retained, which costs hundreds of MB of the device if nobody else in the process has it, until the
    fence is closed or collected and none of its proofs is left.
    """

    def __init__(self, ordinal: int) -> None:
        call("cuInit", 0)
        self._events: _Events | None = _Events(call("cuDevicePrimaryCtxRetain", ordinal), retained_ordinal=ordinal)
        self._can_record = True

    def __call__(self) -> EventProof | SynchronizeProof:
        events = self._events
        if events is None:
            raise DriverError("this fence is closed")
        if self._can_record:
            try:
                return EventProof(events, lambda event: call("cuCtxRecordEvent", events.context, event))
            except DriverError as failure:  # the driver is older than the call
                if failure.code not in _NO_SUCH_CALL:
                    raise
                self._can_record = False
        return SynchronizeProof(events)

    def close(self) -> None:
        """No proofs any more. Those that were taken can still be asked."""
        self._events = None


def stream_fence(*stream_handles: int) -> Callable[[], StreamsProof]:
    """A fence whose proofs cover what these streams were given, and nothing else: cheaper, and for an engine that knows
    its streams. Handles are as `torch.cuda.Stream.cuda_stream` gives them; 0 is the NULL stream of the context that is
    current now. The streams must outlive the fence and its proofs.

    A stream that is being captured is marked when that is over: its proofs are not done before.
    """
    if not stream_handles or _PER_THREAD_STREAM in stream_handles:
        raise InvalidRequest("stream_fence needs streams, and each must be the same one in every thread")
    call("cuInit", 0)
    events_of: dict[int, _Events] = {}
    streams = []
    for handle in stream_handles:
        context = call("cuStreamGetCtx", handle)
        if int(context) not in events_of:
            events_of[int(context)] = _Events(context, _retain_if_primary(context))
        streams.append((handle, events_of[int(context)]))
    return lambda: StreamsProof([EventProof(events, _recorder(handle)) for handle, events in streams])


def _retain_if_primary(context: Any) -> int | None:
    """Keep a context for as long as its events are: the ordinal to release. Others than primary ones cannot be kept."""
    with _current(context):
        ordinal = int(call("cuCtxGetDevice"))
    if int(call("cuDevicePrimaryCtxRetain", ordinal)) == int(context):
        return ordinal
    call("cuDevicePrimaryCtxRelease", ordinal)
    return None


def _recorder(stream_handle: int) -> Callable[[Any], None]:
    def record(event: Any) -> None:
        if int(call("cuStreamIsCapturing", stream_handle)) != 0:
            raise error_of("cuStreamIsCapturing", _CAPTURING)
        call("cuEventRecord", event, stream_handle)

    return record


class EventProof:
    """A proof by one event, which goes back to its pool when it is done, or when the proof is collected.

    Any thread may ask, and several at once.
    """

    def __init__(self, events: _Events, record: Callable[[Any], None]) -> None:
        self._events, self._record = events, record
        self._lock = threading.Lock()  # never held while waiting
        self._is_recorded = False
        self._event: Any | None = events.take()
        try:
            self._record_once(self._event)
        except DriverError as failure:
            if failure.code not in _DURING_CAPTURE:
                raise

    def done(self) -> bool:
        event = self._event
        if event is None:
            return True
        try:
            self._ask("cuEventQuery", event)
        except DriverError as failure:
            if failure.code == _NOT_READY or failure.code in _DURING_CAPTURE:
                return False
            raise
        return True

    def wait(self) -> None:
        """Raises DriverError while a graph is captured that forbids the mark."""
        event = self._event
        if event is not None:
            self._ask("cuEventSynchronize", event)

    def __del__(self) -> None:
        # An event that is not done may be recorded anew: nobody asks for the old mark any more.
        if getattr(self, "_event", None) is not None:
            self._give_back()

    def _ask(self, question: str, event: Any) -> None:
        self._record_once(event)
        try:
            with self._events.entered():
                call(question, event)
        except DriverError as failure:
            if failure.code in _DURING_CAPTURE:
                self._is_recorded = False  # the mark went into the graph
            raise
        self._give_back()

    def _record_once(self, event: Any) -> None:
        with self._lock:
            if not self._is_recorded:
                with self._events.entered():
                    self._record(event)
                self._is_recorded = True

    def _give_back(self) -> None:
        with self._lock:
            event, self._event = self._event, None
        if event is not None:
            self._events.give_back(event)


class SynchronizeProof:
    """A proof where the driver cannot mark a context: only waiting tells, for all that was submitted until then."""

    def __init__(self, events: _Events) -> None:
        self._events = events
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def wait(self) -> None:
        if not self._is_done:
            with self._events.entered():
                call("cuCtxSynchronize")
            self._is_done = True


class StreamsProof:
    """Done when each of its proofs is."""

    def __init__(self, proofs: list[EventProof]) -> None:
        self._proofs = proofs

    def done(self) -> bool:
        self._proofs = [proof for proof in self._proofs if not proof.done()]
        return not self._proofs

    def wait(self) -> None:
        for proof in self._proofs:
            proof.wait()


class _Events:
    """The events of one context, to be used again and again: making one costs more than recording it.

    Fences and proofs refer to it. When none is left its events are destroyed and the context is let go of.
    """

    def __init__(self, context: Any, retained_ordinal: int | None) -> None:
        self.context = context
        flags = bindings().CUevent_flags
        # Without timing, an event is cheaper; with blocking, a thread that waits for it does not spin.
        self._flags = int(flags.CU_EVENT_DISABLE_TIMING) | int(flags.CU_EVENT_BLOCKING_SYNC)
        self._free: list[Any] = []
        # At the end of the process the driver frees everything itself.
        weakref.finalize(self, _destroy, context, self._free, retained_ordinal, os.getpid()).atexit = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the context be the thread's, and put back the one that was."""
        with _allowed_during_capture(), _current(self.context):
            yield

    def take(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            with self.entered():
                return call("cuEventCreate", self._flags)

    def give_back(self, event: Any) -> None:
        self._free.append(event)


@contextmanager
def _current(context: Any) -> Iterator[None]:
    with ExitStack() as undo:
        undo.callback(call, "cuCtxSetCurrent", call("cuCtxGetCurrent"))
        call("cuCtxSetCurrent", context)
        yield


@contextmanager
def _allowed_during_capture() -> Iterator[None]:
    relaxed = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = call("cuThreadExchangeStreamCaptureMode", relaxed)
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", before)


def _destroy(context: Any, events: list[Any], retained_ordinal: int | None, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child has none of the parent's CUDA
    with ExitStack() as undo:
        if retained_ordinal is not None:
            undo.callback(call_at_close, "cuDevicePrimaryCtxRelease", retained_ordinal)
        undo.enter_context(_current(context))
        for event in events:
            call_at_close("cuEventDestroy", event)
