"""All vattd at once: is one down, is one full, who waits, and what paging saves."""

from __future__ import annotations

from deploy.dashboards import savings
from deploy.dashboards.board import Board, Row, Section, Variable
from deploy.dashboards.panels import BLUE, ORANGE, PALE, RED, TEAL, Column, Key, Line, Panel, figure, graph, rows
from deploy.dashboards.queries import or_none, or_zero, quantile, rate, rate_of_bytes

HERE = 'instance=~"$instance"'
CHOSEN = f'{HERE}, tenant=~"$tenant"'
UP = f'up{{job=~".*vattd.*", {HERE}}}'
LEASED = f'vattd_pool_bytes{{state="leased", {HERE}}}'
POOL = f"vattd_pool_bytes{{{HERE}}}"

INSTANCES = Variable("instance", "GPU", "label_values(vattd_build_info, instance)", several=True)
TENANTS = Variable("tenant", "Tenant", f"label_values(vattd_tenant_leased_bytes{{{HERE}}}, tenant)", several=True)


def fleet() -> Board:
    return Board(
        name="fleet",
        title="vattd / fleet",
        text="Every GPU that a vattd lends, and every tenant on them. One instance is one vattd, which is one GPU.",
        variables=[INSTANCES, TENANTS],
        sections=[
            Section("Now", [Row(_figures(), height=4, columns=8), Row([_gpus(), _tenants()], height=5, columns=1)]),
            Section("Memory", [Row(_memory(), height=8, columns=2)]),
            Section("Leasing", [Row(_leasing(), height=8, columns=2)]),
            Section("Saved: each panel against one baseline", [Row(savings.by_tenant(CHOSEN), height=8, columns=3)]),
        ],
    )


def _figures() -> list[Panel]:
    return [
        figure("vattd up", "Instances that Prometheus can scrape.", or_zero(f"count({UP} == 1)")),
        figure(
            "vattd down",
            "Instances that do not answer. Their engines go on with what they hold, and get nothing new: on that "
            "machine type `vattctl status`, then `vattd start --detach` or `systemctl restart`.",
            or_zero(f"count({UP} == 0)"),
            steps=[(1, RED)],
        ),
        figure(
            "Alerts firing",
            "Of deploy/prometheus/rules/alerts.yml, if Prometheus has them. docs/monitoring.md says what to do for "
            "each.",
            or_zero('count(ALERTS{alertname=~"Vattd.*", alertstate="firing"})'),
            steps=[(1, ORANGE)],
        ),
        figure(
            "Pools leased",
            "The part of all pools that engines hold. A full pool is what vattd is for; it is too small only if leases "
            "wait or are refused as well.",
            f"sum({LEASED}) / sum({POOL})",
            unit="percentunit",
            steps=[(0.95, ORANGE)],
        ),
        figure(
            "Free on devices",
            "Device memory that nobody has. Pools can grow into it up to their --pool-max.",
            f"sum(vattd_device_free_bytes{{{HERE}}})",
            unit="bytes",
        ),
        figure("Sessions", "Attached engine processes.", or_zero(f"sum(vattd_sessions{{{CHOSEN}}})")),
        figure(
            "Leases that wait",
            "New requests in queues. Some, now and then, are ordinary; for long, see the tenants' table for whose they "
            "are, and `vattctl tenants` for what they are promised.",
            or_zero(f"sum(vattd_tenant_waiting_leases{{{CHOSEN}}})"),
            steps=[(1, ORANGE)],
        ),
        figure(
            "Promises broken",
            "Tenants that lack what `vattctl reserve` promised them after those asked for it let their time go by. "
            "`vattctl tenants` says by whom; `vattctl evict SESSION` ends it.",
            or_zero(f"sum(vattd_tenant_promise_broken{{{CHOSEN}}})"),
            steps=[(1, RED)],
        ),
    ]


def _gpus() -> Panel:
    return rows(
        "GPUs",
        "One row a vattd. A device short of memory because of other programs shows in their column: stop them, or "
        "start vattd with a smaller --pool-max.",
        Key("instance", "GPU", "vattd-gpu"),
        Column(f"max by (instance, backend, uuid, version) (vattd_build_info{{{HERE}}})", "Info"),
        Column(f"sum by (instance) ({LEASED}) / sum by (instance) ({POOL})", "Pool leased", "percentunit"),
        Column(f"sum by (instance) ({LEASED})", "Leased", "bytes"),
        Column(f"sum by (instance) ({POOL})", "Pool limit", "bytes"),
        Column(f"sum by (instance) (vattd_device_other_bytes{{{HERE}}})", "Other programs", "bytes"),
        Column(f"sum by (instance) (vattd_device_free_bytes{{{HERE}}})", "Free", "bytes"),
        Column(f"sum by (instance) (vattd_sessions{{{HERE}}}) or 0 * max by (instance) ({POOL})", "Sessions"),
        Column(
            f"max by (instance) (vattd_tenant_longest_wait_seconds{{{HERE}}}) or 0 * max by (instance) ({POOL})",
            "Longest wait",
            "s",
        ),
        hidden=["Value #A"],
    )


def _tenants() -> Panel:
    tokens, mapped = (f"sum by (tenant) (vattd_tenant_{what}_bytes{{{CHOSEN}}})" for what in ("token", "mapped"))
    return rows(
        "Tenants",
        "One row a tenant, over all its GPUs. Much leased and little used is memory for others: `vattctl shrink "
        "--ask-engines` asks for it once, a max (`vattctl reserve TENANT --max SIZE`) bounds it.",
        Key("tenant", "Tenant", "vattd-tenant"),
        Column(f"sum by (tenant) (vattd_tenant_leased_bytes{{{CHOSEN}}})", "Leased", "bytes"),
        Column(mapped, "Mapped", "bytes"),
        Column(f"{tokens} / {mapped}", "Used by tokens", "percentunit"),
        Column(f"sum by (tenant) (vattd_tenant_min_bytes{{{CHOSEN}}})", "Min", "bytes"),
        Column(f"sum by (tenant) (vattd_tenant_missing_bytes{{{CHOSEN}}})", "Missing of it", "bytes"),
        Column(f"sum by (tenant) (vattd_sessions{{{CHOSEN}}})", "Sessions"),
        Column(f"sum by (tenant) (vattd_tenant_waiting_leases{{{CHOSEN}}})", "Leases that wait"),
        Column(f"max by (tenant) (vattd_tenant_longest_wait_seconds{{{CHOSEN}}})", "Longest wait", "s"),
    )


def _memory() -> list[Panel]:
    pages = f"sum(vattd_device_pages_bytes{{{HERE}}})"
    return [
        graph(
            "Where the devices' memory is",
            "All of it: leased to engines, kept by vattd ready to lend, taken by other programs, free. Much that is "
            "ready and never leased: a smaller --headroom or --pool-min. Other programs that grow take what pools "
            "could.",
            Line(f"sum({LEASED})", "leased", BLUE),
            Line(f"clamp_min({pages} - sum({LEASED}), 0)", "ready to lend", TEAL),
            Line(f"sum(vattd_device_other_bytes{{{HERE}}})", "other programs", ORANGE),
            Line(f"sum(vattd_device_free_bytes{{{HERE}}})", "free", PALE),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "Leased, by tenant",
            "Who holds the memory. A tenant that grows and never shrinks: see its dashboard, whether tokens fill it.",
            Line(f"sum by (tenant) (vattd_tenant_leased_bytes{{{CHOSEN}}})", "{{tenant}}"),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "Pool leased, by GPU",
            "GPUs that are full beside others that are not: move an engine, or route requests by it.",
            Line(f"sum by (instance) ({LEASED}) / sum by (instance) ({POOL})", "{{instance}}"),
            unit="percentunit",
            most=1,
        ),
        graph(
            "Sessions, by tenant",
            "Attached engine processes. A step down is engines that ended: the GPU's dashboard says of what.",
            Line(f"sum by (tenant) (vattd_sessions{{{CHOSEN}}})", "{{tenant}}"),
            unit="short",
            stacked=True,
        ),
    ]


def _leasing() -> list[Panel]:
    return [
        graph(
            "Lent, bytes a second, by tenant",
            "How much memory goes out. It follows the requests; much of it at few requests is an engine that returns "
            "its pages and takes them again.",
            Line(rate("vattd_tenant_granted_bytes_total", CHOSEN, "tenant"), "{{tenant}}"),
            unit="binBps",
        ),
        graph(
            "How long new requests wait, 99th percentile, by GPU",
            "Time in the queue of ADMIT leases that were granted. Where it rises, the pool is too small for its "
            "tenants, or one of them needs a min: `vattctl reserve TENANT --min SIZE`.",
            Line(quantile(0.99, "vattd_lease_wait_seconds", CHOSEN, "instance"), "{{instance}}"),
            unit="s",
        ),
        graph(
            "Refused leases, by reason",
            "POOL_EXHAUSTED: free pages were too few, engines preempt. LIMIT_EXCEEDED: above the tenant's max. "
            "WAIT_HOPELESS: could never be met beside the others' promises. OUT_OF_MEMORY: the device is short.",
            Line(or_none(rate("vattd_lease_refusals_total", CHOSEN, "reason"), "reason"), "{{reason}}"),
            unit="ops",
        ),
        graph(
            "Lent, bytes a second, by purpose",
            "admit: new requests. grow: running ones. ahead: what the library takes before anybody needs it; if that "
            "is most of it, engines read further ahead than they use.",
            Line(rate_of_bytes("vattd_lease_pages_total", HERE, "purpose"), "{{purpose}}"),
            unit="binBps",
        ),
    ]
