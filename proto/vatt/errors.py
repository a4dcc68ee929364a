"""Every error that vattd, the library and vattctl raise for a caller to handle.

VattError
├── InvalidRequest          the request makes no sense; mend it, do not retry
├── PoolExhausted           too few pages now; free some and retry
│   └── WaitHopeless        and waiting does not help while other tenants hold what they were promised
├── LimitExceeded           more than may ever be lent; do not retry
├── LeaseCancelled          CancelLease came before the answer
├── SessionUnknown          vattd does not know this session; attach again
├── SessionFenced           the session's stream broke; re-attach
├── TokenRefused            not a token that this vattd handed out to this process
├── SessionEvicted          an operator asked this session to leave
├── KillRefused             the kernel does not let vattd end the process
├── TenantDenied            the tenant is not this user's
├── TenantUnknown           nothing was reserved for this tenant
├── Overcommitted           more would be promised than there is
├── PageNotHeld             a page that this session does not lease
├── VersionUnsupported      no wire version in common
├── MpsRefused              the process uses its GPU through an MPS server
├── TooBusy                 more calls of this user wait than may; retry with backoff
├── ShuttingDown            vattd is about to stop
├── Draining                vattd takes no new requests until it is resumed
├── DaemonUnreachable       nobody answers at the socket
├── ForkedSession           used in a forked child; attach there anew
├── Closed                  used after close()
├── DeviceNotFound          no such GPU
├── SystemLimit             an operating-system limit would be passed
└── DriverError             a driver call failed
    ├── OutOfMemory         the device (or host) has no memory left
    └── DeviceLost          a sticky device error; nothing on it can be used again
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class VattError(Exception):
    """Base of every error a caller may handle. `reason` is API: never change one."""

    reason: ClassVar[str] = "INTERNAL"
    # Names of the integers that travel with the error; they are also the constructor's arguments.
    wire_fields: ClassVar[tuple[str, ...]] = ()


class InvalidRequest(VattError, ValueError):
    """The request makes no sense, whatever the state of the pool."""

    reason = "INVALID_REQUEST"


class PoolExhausted(VattError, MemoryError):
    """Too few free pages now; the caller may free some and retry."""

    reason = "POOL_EXHAUSTED"
    wire_fields = ("requested_pages", "free_pages")

    def __init__(self, requested_pages: int, free_pages: int) -> None:
        super().__init__(f"need {requested_pages} pages, {free_pages} can be had now")
        self.requested_pages, self.free_pages = requested_pages, free_pages


class WaitHopeless(PoolExhausted):
    """So many pages could not be had even if all came back that are not promised to other tenants."""

    reason = "WAIT_HOPELESS"

    def __init__(self, requested_pages: int, free_pages: int) -> None:
        super().__init__(requested_pages, free_pages)
        self.args = (
            f"need {requested_pages} pages, and at most {free_pages} can come free while other tenants hold what they "
            "were promised",
        )


class LimitExceeded(VattError, MemoryError):
    """More pages than may ever be lent to this caller; waiting does not help."""

    reason = "LIMIT_EXCEEDED"
    wire_fields = ("requested_pages", "limit_pages")

    def __init__(self, requested_pages: int, limit_pages: int) -> None:
        super().__init__(
            f"{requested_pages} pages are more than the {limit_pages} that may be lent here: `vattctl tenants` shows "
            "who may have how much, and `vattctl reserve NAME --max` changes it"
        )
        self.requested_pages, self.limit_pages = requested_pages, limit_pages


class LeaseCancelled(VattError):
    """The lease was cancelled before it was answered; nothing was lent."""

    reason = "LEASE_CANCELLED"


class SessionUnknown(VattError, LookupError):
    """vattd does not know this session, or its secret is wrong: attach again."""

    reason = "SESSION_UNKNOWN"


class SessionFenced(VattError):
    """The session's stream broke while its process lives: it keeps its pages and gets no new ones until re-attached."""

    reason = "SESSION_FENCED"


class TokenRefused(VattError, PermissionError):
    """Not a token that this vattd handed out, or one used already."""

    reason = "TOKEN_REFUSED"


class SessionEvicted(VattError):
    """An operator asked this session to leave: it keeps what it holds until it gives it back, and gets no new pages."""

    reason = "SESSION_EVICTED"


class KillRefused(VattError):
    """The kernel does not let vattd end a session's process: it is another user's, and vattd is not root."""

    reason = "KILL_REFUSED"


class TenantDenied(VattError, PermissionError):
    """The tenant belongs to another user, or does not list this one."""

    reason = "TENANT_DENIED"


class TenantUnknown(VattError, LookupError):
    """Nothing was reserved for a tenant of this name."""

    reason = "TENANT_UNKNOWN"


class Overcommitted(VattError):
    """The mins of all tenants together would not fit the pool."""

    reason = "OVERCOMMITTED"


class PageNotHeld(VattError, LookupError):
    """A page that the session does not lease under this generation."""

    reason = "PAGE_NOT_HELD"


class VersionUnsupported(VattError):
    """The two sides have no version of the wire in common."""

    reason = "VERSION_UNSUPPORTED"


class MpsRefused(VattError):
    """The process uses its GPU through an MPS server, where its end does not prove that its kernels have ended."""

    reason = "MPS_REFUSED"


class TooBusy(VattError):
    """More of this user's calls wait than may; nothing was done. Retry with backoff."""

    reason = "TOO_BUSY"


class ShuttingDown(VattError):
    """vattd is about to stop: leases are refused, what is held stays held."""

    reason = "SHUTTING_DOWN"


class Draining(VattError):
    """An operator has this vattd drained: no new sessions and requests, until it is resumed."""

    reason = "DRAINING"


class DaemonUnreachable(VattError, ConnectionError):
    """Nobody answers at the socket. The message names the command that starts vattd."""

    reason = "DAEMON_UNREACHABLE"


class ForkedSession(VattError):
    """A session does not survive fork(): its mappings are gone from the child. Attach anew there."""

    reason = "FORKED_SESSION"


class Closed(VattError):
    """Used after close()."""

    reason = "CLOSED"


class DeviceNotFound(VattError, LookupError):
    """No such GPU, or no driver. The message names the way out."""

    reason = "DEVICE_NOT_FOUND"


class SystemLimit(VattError, OSError):
    """An operating-system limit would be passed. The message names the limit and the command that raises it."""

    reason = "SYSTEM_LIMIT"


class DriverError(VattError):
    """A driver call failed; nothing of it remains. `call` and `code` name it, the message says what to do."""

    reason = "DRIVER_ERROR"

    def __init__(self, message: str, call: str = "", code: str = "") -> None:
        super().__init__(message)
        self.call, self.code = call, code


class OutOfMemory(DriverError, MemoryError):
    """The device, or the host, has no memory left for another page."""

    reason = "OUT_OF_MEMORY"


class DeviceLost(DriverError):
    """A sticky device error: nothing on the device can be used again by this process."""

    reason = "DEVICE_LOST"


def _tree(root: type[VattError]) -> dict[str, type[VattError]]:
    """By reason. A subclass without a reason of its own never travels: it is its parent to the other side."""
    found = {root.reason: root}
    for child in root.__subclasses__():
        found = {**_tree(child), **found}
    return found


def from_wire(reason: str, message: str, fields: Mapping[str, str]) -> VattError:
    """The error that the other side raised. An unknown reason, or fields that do not fit, give a plain VattError."""
    kind = _tree(VattError).get(reason, VattError)
    if not kind.wire_fields:
        return kind(message)
    try:
        return kind(*(int(fields[name]) for name in kind.wire_fields))
    except (KeyError, ValueError):
        return VattError(message)
