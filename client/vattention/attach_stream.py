"""The stream that a session lives by: Attached first, then what vattd has to say."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import grpc

from vatt.errors import DaemonUnreachable, SessionFenced, VattError
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention.tidings import Tidings
from vattention.wire_errors import stream_ended

log = logging.getLogger(__name__)


class AttachStream:
    """Reads the stream into the session's tidings, in a thread, until it ends, and remembers how it did.

    `ended` is None while the session is attached; after that it is why it is not. What goes wrong with one message is
    logged, and the next one read.
    """

    def __init__(
        self,
        stub: vatt_pb2_grpc.EngineServiceStub,
        request: vatt_pb2.AttachRequest,
        tidings: Tidings,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called when a stream that was answered ends without being expected to."""
        self.ended: VattError | None = None
        self._on_end = on_end
        self._over = threading.Event()
        self._tidings = tidings
        self._first: vatt_pb2.Attached | None = None
        self._answered = threading.Event()
        self._closing = False
        # A vattd that was started a moment ago may not be seen yet by a channel that has just failed.
        self._call = stub.Attach(request, wait_for_ready=request.HasField("resume"))
        self._thread = threading.Thread(target=self._read, name="vattention-attach", daemon=True)
        self._thread.start()

    def attached(self, timeout_s: float) -> vatt_pb2.Attached:
        """The session's facts, or the error that vattd refused it with."""
        if not self._answered.wait(timeout_s):
            raise DaemonUnreachable(f"vattd does not answer Attach within {timeout_s:g} s: see `vattctl status`")
        if self._first is None:
            raise self.ended or VattError("vattd's first message was not Attached")
        return self._first

    def expect_end(self) -> None:
        """The session is about to detach, or to have another stream: this one's end is no news."""
        self._closing = True

    def is_to_go_on(self) -> None:
        """It was not to be after all."""
        self._closing = False
        if self.ended is not None:
            self._on_end()

    def ends_within(self, timeout_s: float) -> bool:
        """Is it over, or will it be in a moment? What breaks a call may break the stream as well."""
        return self._over.wait(timeout_s)

    def close(self) -> None:
        """Idempotent."""
        self.expect_end()
        self._call.cancel()
        self._thread.join()

    def _read(self) -> None:
        ended: VattError = SessionFenced("the thread that reads the session's stream has ended")
        try:
            for response in self._call:
                self._hear_guarded(response)
                self._answered.set()
            ended = stream_ended(None)
        except grpc.RpcError as broken:
            ended = stream_ended(broken)
        except Exception as error:  # the thread's boundary
            log.exception("the session's stream: unexpected")
            ended = SessionFenced(f"the session's stream cannot be read: {error!r}")
        finally:  # whatever it was: a session that hears nothing must not seem attached
            self._end(ended)

    def _end(self, why: VattError) -> None:
        self.ended = why
        self._answered.set()
        self._call.cancel()  # if it is not over, vattd should know as well
        self._over.set()
        if not self._closing and self._first is not None:
            log.warning("session %s is fenced: %s", self._first.key.session_id, why)
            self._on_end()

    def _hear_guarded(self, response: vatt_pb2.AttachResponse) -> None:
        """A listener's failure must not make the session deaf."""
        try:
            self._hear(response)
        except Exception:
            log.exception("vattd's %s: unexpected", response.WhichOneof("event"))

    def _hear(self, response: vatt_pb2.AttachResponse) -> None:
        match response.WhichOneof("event"):
            case "attached":
                self._first = response.attached
                self._tidings.hear_attached()
            case "notice":
                level = logging.DEBUG if self._closing else logging.WARNING
                log.log(level, "vattd says: %s", response.notice.message)
                self._tidings.hear_notice(response.notice)
            case "guarantee":
                self._tidings.hear_guarantee(response.guarantee)
            case "reclaim":
                self._tidings.hear_reclaim(response.reclaim)
            case _:  # of a later version of the wire
                pass
