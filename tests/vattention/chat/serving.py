"""A chat server in this process, on a port of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from vattention.chat import ChatEngine
from vattention.chat.server import ChatServer


@contextmanager
def serving(engine: ChatEngine) -> Iterator[str]:
    """The address of a server of this engine, which ends with the block."""
    listener = socket.create_server(("127.0.0.1", 0))  # who connects before it accepts is kept waiting by the kernel
    config = uvicorn.Config(ChatServer(engine).app, log_level="error", lifespan="off", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
