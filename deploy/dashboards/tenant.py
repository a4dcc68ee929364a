"""One tenant, on one GPU or on all: what it was promised, has, uses, waits for, and saves."""

from __future__ import annotations

from deploy.dashboards import savings
from deploy.dashboards.board import Board, Row, Section, Variable
from deploy.dashboards.fleet import INSTANCES
from deploy.dashboards.panels import BLUE, GREEN, GREY, ORANGE, RED, TEAL, Line, Panel, figure, graph
from deploy.dashboards.queries import or_none, quantile, rate

ITS = 'tenant="$tenant", instance=~"$instance"'
# Where it has no max it may have the whole pool.
MOST = (
    f"sum(vattd_tenant_max_bytes{{{ITS}}} or on (instance) (sum by (instance) "
    f'(vattd_pool_bytes{{instance=~"$instance"}}) and on (instance) vattd_tenant_leased_bytes{{{ITS}}}))'
)
USED = f"sum(vattd_tenant_token_bytes{{{ITS}}}) / sum(vattd_tenant_mapped_bytes{{{ITS}}})"

TENANT = Variable("tenant", "Tenant", "label_values(vattd_tenant_leased_bytes, tenant)", several=False)


def tenant() -> Board:
    return Board(
        name="tenant",
        title="vattd / one tenant",
        text="One tenant: its guarantee, what it has of it, what tokens fill, how long it waits, and what paging "
        "saves it.",
        variables=[TENANT, INSTANCES],
        sections=[
            Section("Now", [Row(_figures(), height=4, columns=8)]),
            Section("Memory", [Row(_memory(), height=8, columns=2)]),
            Section("Leasing", [Row(_leasing(), height=8, columns=3)]),
            Section("Saved: each panel beside one baseline", [Row(savings.of_one(ITS), height=8, columns=3)]),
        ],
    )


def _figures() -> list[Panel]:
    return [
        figure("Leased", "What its sessions hold.", f"sum(vattd_tenant_leased_bytes{{{ITS}}})", unit="bytes"),
        figure(
            "Min",
            "Promised by `vattctl reserve`, whatever others do; 0: nothing is.",
            f"sum(vattd_tenant_min_bytes{{{ITS}}})",
            unit="bytes",
        ),
        figure("Max", "The most it may lease: its own max, else the pool.", MOST, unit="bytes"),
        figure(
            "Weight",
            "Its share of what is left beyond all mins, beside the others' weights.",
            f"max(vattd_tenant_weight{{{ITS}}})",
        ),
        figure(
            "Used by tokens",
            "Of what is mapped. Low for long: a finer layout or page size (docs/design.md, Layouts), or many slots "
            "kept for requests that do not come.",
            USED,
            unit="percentunit",
        ),
        figure(
            "Promise",
            "broken: what is missing was asked back and not given in time; `vattctl tenants` says by whom.",
            f"max(vattd_tenant_promise_broken{{{ITS}}})",
            words={0: ("kept", GREEN), 1: ("broken", RED)},
        ),
        figure(
            "Leases that wait",
            "Its new requests in the queue.",
            f"sum(vattd_tenant_waiting_leases{{{ITS}}})",
            steps=[(1, ORANGE)],
        ),
        figure(
            "Longest wait",
            "Of the first of them. For long: `vattctl reserve` gives it a min, or a larger weight.",
            f"max(vattd_tenant_longest_wait_seconds{{{ITS}}})",
            unit="s",
            steps=[(10, ORANGE), (60, RED)],
        ),
    ]


def _memory() -> list[Panel]:
    leased, mapped = f"sum(vattd_tenant_leased_bytes{{{ITS}}})", f"sum(vattd_tenant_mapped_bytes{{{ITS}}})"
    return [
        graph(
            "Leased, within its guarantee",
            "At its max it is refused more (LIMIT_EXCEEDED): `vattctl reserve TENANT --max SIZE`. Always below its "
            "min: the min could be smaller.",
            Line(leased, "leased", BLUE),
            Line(f"sum(vattd_tenant_min_bytes{{{ITS}}})", "min", GREEN),
            Line(MOST, "max", RED),
            unit="bytes",
        ),
        graph(
            "Leased, mapped, filled with tokens",
            "By its engines' reports. Leased and mapped nowhere for long, or mapped and no tokens: see the alert "
            "VattdLeakSuspected in docs/monitoring.md.",
            Line(leased, "leased", BLUE),
            Line(mapped, "mapped", TEAL),
            Line(f"sum(vattd_tenant_token_bytes{{{ITS}}})", "tokens", GREEN),
            Line(f"sum(vattd_tenant_idle_bytes{{{ITS}}})", "idle", GREY),
            unit="bytes",
        ),
        graph(
            "Leased, by GPU",
            "Where it has its memory.",
            Line(f"sum by (instance) (vattd_tenant_leased_bytes{{{ITS}}})", "{{instance}}"),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "Utilization: tokens of what is mapped",
            "The rest is mapped ahead, rounded up to pages, or kept of finished requests.",
            Line(USED, "used by tokens", GREEN),
            unit="percentunit",
            most=1,
        ),
    ]


def _leasing() -> list[Panel]:
    return [
        graph(
            "How long its new requests wait",
            "Time in the queue of those that were granted, 0 included. A min, or a larger weight, makes it shorter: "
            "`vattctl reserve`.",
            Line(quantile(0.5, "vattd_lease_wait_seconds", ITS), "median", TEAL),
            Line(quantile(0.99, "vattd_lease_wait_seconds", ITS), "99th percentile", ORANGE),
            unit="s",
        ),
        graph(
            "Waits now",
            "How long the first of its queued requests has waited.",
            Line(f"max(vattd_tenant_longest_wait_seconds{{{ITS}}})", "longest wait", ORANGE),
            unit="s",
        ),
        graph(
            "Asked for by leases that wait, missing of its min",
            "missing for longer than --reclaim-within: somebody does not give back, `vattctl tenants` says who.",
            Line(f"sum(vattd_tenant_waiting_bytes{{{ITS}}})", "waiting", BLUE),
            Line(f"sum(vattd_tenant_missing_bytes{{{ITS}}})", "missing", RED),
            unit="bytes",
        ),
        graph(
            "Lent to it, bytes a second",
            "It follows its requests; much of it at few requests is an engine that returns pages and takes them again.",
            Line(rate("vattd_tenant_granted_bytes_total", ITS), "granted", BLUE),
            unit="binBps",
        ),
        graph(
            "Its refused leases, by reason",
            "POOL_EXHAUSTED: too few free pages, it preempts. LIMIT_EXCEEDED: its max. WAIT_HOPELESS: could never be "
            "met beside the others' promises.",
            Line(or_none(rate("vattd_lease_refusals_total", ITS, "reason"), "reason"), "{{reason}}"),
            unit="ops",
        ),
        graph(
            "Sessions, by GPU",
            "Its attached engine processes.",
            Line(f"sum by (instance) (vattd_sessions{{{ITS}}})", "{{instance}}"),
            unit="short",
            stacked=True,
        ),
    ]
