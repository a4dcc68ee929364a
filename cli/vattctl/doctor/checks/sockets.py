"""Where sockets are, and what answers at them."""

from __future__ import annotations

from vatt.protocol import MAX_VERSION, MIN_VERSION
from vattctl.doctor.checks.commands import ask_as_root, naming, start_anew
from vattctl.doctor.facts import Daemon, Directory, Facts, Trouble
from vattctl.doctor.finding import IN_SOURCES, Finding, broken, note, ok, warning
from vattctl.words import some_of

USUAL_METRICS = "127.0.0.1:9410"  # of `vattd start`
# vattd notes its start once it has the device, which may take a while, and both ends are rounded.
CLOCK_EARLY_S, CLOCK_LATE_S = 2.0, 120.0


def directory(facts: Facts, found: Directory) -> Finding:
    name, path = "socket-dir", str(found.path)
    if found.trouble is not Trouble.NONE:
        ways = {
            Trouble.UNSAFE: [f"chmod go-w {path}", "vattd start --socket-dir /tmp/vattd"],
            Trouble.HIDDEN: [ask_as_root(found.path)],
            Trouble.TOO_LONG: ["vattd start --socket-dir /tmp/vattd"],
        }
        return broken(name, found.error, *ways[found.trouble], subject=path)
    if not found.exists and found.is_chosen:
        fixes = [f"vattd start --socket-dir {path}"]
        if facts.container.kind:
            fixes.insert(0, f"docker run -v {path}:{path} ...")
        return warning(name, "there is no such directory", *fixes, subject=path)
    count = sum(one.directory == found.path for one in facts.daemons)
    if not found.exists or not count:
        return ok(name, "no vattd has sockets here", path)
    words = f"{count} vattd has" if count == 1 else f"{count} vattds have"
    if facts.container.kind and not found.is_mounted:
        fix = f"docker run -v {path}:{path} ..."
        return note(name, f"{words} sockets here, inside of this container only", fix, subject=path)
    return ok(name, f"{words} sockets here", path)


def no_vattd(facts: Facts) -> Finding:
    return note("vattd", "none was found", "vattd start")


def elsewhere(facts: Facts) -> Finding:
    """A vattd that runs, and is not found, is mostly one with another socket directory."""
    if not facts.other_places:
        return ok("other-places", "no vattd of this machine has its sockets elsewhere")
    words = "there are sockets of a vattd, where they are not looked for: " + some_of(map(str, facts.other_places))
    return note("other-places", words, f"export VATTD_SOCKET_DIR={facts.other_places[0]}")


def metrics_port(facts: Facts) -> Finding:
    """Where it is taken, a vattd with the usual options does not start."""
    if not facts.metrics_port_error:
        return ok("metrics-port", f"{USUAL_METRICS} is free")
    if any(USUAL_METRICS in metrics.url for daemon in facts.daemons for metrics in daemon.metrics):
        return ok("metrics-port", f"{USUAL_METRICS} is a vattd's")
    words = f"{USUAL_METRICS} cannot be had ({facts.metrics_port_error}): a vattd does not start with its usual options"
    return warning("metrics-port", words, "vattd start --metrics-address 127.0.0.1:0", "ss -ltnp 'sport = :9410'")


def answers(facts: Facts, daemon: Daemon) -> Finding:
    """To an engine, and to an operator."""
    where, name = daemon.subject, "vattd"
    options = naming(facts, daemon)
    if daemon.connect_error in ("ECONNREFUSED", "ENOENT"):
        words = "nobody listens: a vattd that was killed left its sockets; a new one takes them over, and its engines"
        return warning(name, words, f"vattd start {options}", subject=where)
    if daemon.connect_error:
        words = f"this user cannot connect ({daemon.connect_error}): who runs vattd decides which users may"
        return broken(name, words, ask_as_root(daemon.directory), "sudo vattd start", subject=where)
    if daemon.is_stopped:
        words = f"process {daemon.pid} is stopped (SIGSTOP, or a debugger)"
        return broken(name, words, f"kill -CONT {daemon.pid}", subject=where)
    if daemon.refusal:
        return broken(name, f"it refuses this process: {daemon.refusal}", *_way_in(daemon.refusal), subject=where)
    if daemon.is_silent:
        return broken(name, "it listens, and does not answer", f"vattd stop {options}", subject=where)
    if daemon.status is None:
        words = "it answers engines; what it does only its own user can ask"
        return note(name, f"{words} ({daemon.status_error})", ask_as_root(daemon.directory), subject=where)
    return _state(daemon, options)


def _way_in(refusal: str) -> list[str]:
    if "pid namespace" in refusal:
        return ["docker run --pid=host ...", "hostPID: true   # Kubernetes, in the pod's spec"]
    if "/proc" in refusal:
        return ["sudo vattd start", "sudo mount -o remount,hidepid=0 /proc"]
    return ["vattctl status"]


def _state(daemon: Daemon, options: str) -> Finding:
    status, name, where = daemon.status, "vattd", daemon.subject
    if status is None:
        raise ValueError(f"no status: {daemon}")
    if status.state in ("device_lost", "broken"):
        words = f"it lends nothing any more: {status.state}"
        return broken(name, words, f"vattd start {options}", "sudo dmesg | grep -i xid", subject=where)
    if status.shortage:
        words = f"the device gives no memory now: {status.shortage}"
        return warning(name, words, "nvidia-smi" if status.backend == "cuda" else "free -h", subject=where)
    if status.state != "serving":
        return note(
            name, f"it takes no new requests: {status.state}", f"vattctl drain --resume {options}", subject=where
        )
    count = status.session_count
    sessions = "1 session" if count == 1 else f"{count or 'no'} sessions"
    return ok(name, f"serves, pid {daemon.pid or 'unknown'}, {sessions}", where)


def version(facts: Facts, daemon: Daemon) -> Finding:
    name, where, own = "vattd-version", daemon.subject, facts.software.version
    low, high = daemon.wire_versions
    if high < MIN_VERSION or low > MAX_VERSION:
        words = f"it speaks wire versions {low} to {high}, and this package {MIN_VERSION} to {MAX_VERSION}"
        return broken(name, words, f"pip install --upgrade .{IN_SOURCES}", start_anew(facts, daemon), subject=where)
    theirs = daemon.status.version if daemon.status is not None else own
    if theirs != own:
        words = f"vattd is {theirs}, and what is installed here is {own}"
        return warning(name, words, start_anew(facts, daemon), subject=where)
    return ok(name, f"{own}, as here" if daemon.status is not None else f"wire version {high}", where)


def clock(facts: Facts, daemon: Daemon) -> Finding:
    """One machine has one clock, so what may differ is what it said when vattd started: it was set since, or vattd
    sees another one (faketime). The kernel knows when the process began, whatever the clock said then."""
    name, where = "clock", daemon.subject
    if daemon.status is None or not daemon.process_start_s:
        return note(name, "cannot be compared: when the process began is hidden from this user", subject=where)
    late_s = daemon.status.start_s - daemon.process_start_s
    if -CLOCK_EARLY_S <= late_s <= CLOCK_LATE_S:
        return ok(name, "vattd's and this one agree", where)
    way = "forward" if late_s < 0 else "back"
    words = f"set {way} by {abs(late_s):,.0f} s since vattd started: what was reserved --for a time ends by the new one"
    return warning(name, words, "timedatectl status", "vattctl tenants", subject=where)


def metrics(facts: Facts, daemon: Daemon) -> Finding:
    name, where = "metrics", daemon.subject
    wrong = [one for one in daemon.metrics if one.error]
    if wrong:
        words = f"{wrong[0].url} does not answer: {wrong[0].error}"
        return warning(name, words, f"curl -v {wrong[0].url}", start_anew(facts, daemon), subject=where)
    if daemon.metrics:
        return ok(name, f"{daemon.metrics[0].url} answers", where)
    if daemon.metrics_hidden:
        return note(name, "where it serves them is hidden from this user", ask_as_root(daemon.directory), subject=where)
    address = "127.0.0.1:0" if facts.metrics_port_error else USUAL_METRICS
    return note(name, "off", start_anew(facts, daemon, f"--metrics-address {address}"), subject=where)
