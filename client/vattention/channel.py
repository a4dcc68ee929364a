"""The gRPC channel to a vattd."""

from __future__ import annotations

import grpc
import grpc.experimental

from vatt import protocol
from vatt.sockets import Sockets
from vattention import fork_guard

_OPTIONS = (
    ("grpc.max_receive_message_length", protocol.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", protocol.MAX_REQUEST_BYTES),
    # A channel of one's own: closing it closes this session's connection and nobody else's.
    ("grpc.use_local_subchannel_pool", 1),
    # Repeats are ours to decide (see engine_client), and a Unix socket needs no proxy.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # A Unix socket costs nothing to try, and a vattd that is started anew is there within a second or so.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # By its name the pause between two attempts, in truth how long one may take: a vattd on a busy machine is slow to
    # answer, and a first call does not try again.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The stream is read by our own thread alone, which close() joins. gRPC's would die with the interpreter, holding
    # the stream's lock, and the stream's finalizer would wait for it: the process would never end.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
)


def open_channel(sockets: Sockets) -> grpc.Channel:
    """Connects when it is used. Raises ForkedSession as `fork_guard.about_to_open_a_channel` does."""
    fork_guard.about_to_open_a_channel()
    return grpc.insecure_channel(f"unix:{sockets.engine.absolute()}", options=_OPTIONS)
