"""The last word of a session that was closed while no vattd answered.

The next vattd takes such a session for a silent one, whose pages it keeps from others for as long as the process lives.
So a thread goes on trying to tell it. Nothing waits for that thread: it ends with the process, of whose end vattd hears
by itself, and a forked child does not have it.
"""

from __future__ import annotations

import logging
import threading
import time

import grpc

from vatt.errors import SessionUnknown
from vatt.sockets import Sockets
from vatt.v1 import vatt_pb2, vatt_pb2_grpc
from vattention.channel import open_channel
from vattention.engine_client import ANSWER_TIMEOUT_S
from vattention.reattacher import pauses_s
from vattention.wire_errors import from_rpc

log = logging.getLogger(__name__)


def detach_later(sockets: Sockets, key: vatt_pb2.SessionKey) -> None:
    """Have the session detached in the background once a vattd answers. Nothing of it may be mapped any more."""
    thread = threading.Thread(target=_run, args=(sockets, key), name="vattention-farewell", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no thread to be had, or the interpreter is about to end
        log.warning("vattd keeps the pages of session %s until this process ends: %s", key.session_id, error)


def _run(sockets: Sockets, key: vatt_pb2.SessionKey) -> None:
    try:
        for pause_s in pauses_s():
            time.sleep(pause_s)
            # Without the journal that is beside the sockets no vattd will ever know of the session.
            if not sockets.journal.exists() or _detach(sockets, key):
                break
        log.info("no vattd keeps pages for session %s any more, which is closed", key.session_id)
    except Exception:  # the thread's boundary
        log.exception("detaching session %s: unexpected", key.session_id)


def _detach(sockets: Sockets, key: vatt_pb2.SessionKey) -> bool:
    """Whether vattd has no such session, now or anyway.

    The channel is a new one each time: one that has failed would not see at once that a vattd is there again.
    """
    with open_channel(sockets) as channel:
        stub = vatt_pb2_grpc.EngineServiceStub(channel)
        try:
            stub.Detach(vatt_pb2.DetachRequest(key=key), timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError as failed:
            error = from_rpc(failed)
            log.debug("session %s is not detached yet: %s", key.session_id, error)
            return isinstance(error, SessionUnknown)
    return True
