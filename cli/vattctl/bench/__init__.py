"""`vattctl bench`: what a device's pages cost here, measured, beside what others published.

    plan      what is measured, within which memory     run       all of it, a part at a time
    calls     the drivers' calls for pages              lender    the vattd that leases come from
    leases    round trips with it                       steps     KVCache.step, mapped ahead or not
    stopwatch times by phase and by call                summary   of many times: median, percentiles, noise
    environment, gpu   the machine                      published what others measured
    report    all that came out, and as JSON            tables    as rows; render, markdown, plot: as people see it

What is printed is meant to be sent to others: it names no host, user, path, process or device UUID. `command`, `plan`
and what they import need no torch, numpy or matplotlib.
"""
