"""What vattd needs of the kernel."""

from __future__ import annotations

from vattctl.doctor.facts import Facts
from vattctl.doctor.finding import Finding, broken, note, ok, warning


def sessions(facts: Facts) -> Finding:
    """A session is a process that is watched, by its pidfd."""
    kernel = facts.kernel
    if kernel.pidfd_error:
        fix = "docker run --security-opt seccomp=unconfined ..." if facts.container.kind else "run Linux 5.3 or later"
        return broken("pidfd", f"pidfd_open fails ({kernel.pidfd_error}): vattd could not see engines end", fix)
    if not kernel.has_peer_pidfd:
        words = "an engine is known by its pid where it connects, which may have been used again (SO_PEERPIDFD is new)"
        return note("pidfd", f"Linux {kernel.release}: {words}", "run Linux 6.5 or later")
    return ok("pidfd", f"Linux {kernel.release}: engines are watched from the moment they connect")


def descriptors(facts: Facts) -> Finding:
    if facts.kernel.refuses_descriptors:
        return ok("descriptors", "vattd can refuse descriptors that clients send it")
    words = "clients can send vattd descriptors that are slow to close (docs/security.md)"
    return note("descriptors", words, "run Linux 6.16 or later")


def memfd(facts: Facts) -> Finding:
    """What pages of host memory are made of."""
    if not facts.kernel.memfd_error:
        return ok("memfd", "sealed files of memory can be made")
    words = f"memfd_create fails ({facts.kernel.memfd_error}): there can be no pages of host memory"
    return (broken if facts.uses_host_memory else warning)("memfd", words, "sudo sysctl -w vm.memfd_noexec=0")


def processes(facts: Facts) -> Finding:
    """After a restart vattd knows a process by when it began."""
    if not facts.kernel.hides_processes:
        return ok("proc", "processes of other users can be seen")
    words = "/proc hides other users' processes (hidepid): a vattd of this user refuses their engines"
    return warning("proc", words, "sudo vattd start", "sudo mount -o remount,hidepid=0 /proc")


def container(facts: Facts) -> Finding:
    """Where engines and vattd do not share a pid namespace, neither sees the other end."""
    found = facts.container
    where = f"in a container ({found.kind})" if found.kind else "in a pid namespace of its own"
    if found.own_pids:
        words = f"{where}: a vattd in here cannot serve engines outside of it, whose end it does not see"
        return note("container", words, "docker run --pid=host ...", "hostPID: true   # Kubernetes, in the pod's spec")
    if found.own_users:
        words = "in a user namespace: what --allow names are the users of in here"
        return note("container", words)
    return ok("container", f"{where}, which shares the machine's processes" if found.kind else "in none")
