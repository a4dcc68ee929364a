"""`vattctl replay`: a request trace through the real library, in virtual time, beside other ways to hold the same KV.

    trace     requests, from a file or carried here      models   KV geometries by name, and their small doubles
    batching  one engine's steps: admit, grow, preempt   schemes  what is compared, by arithmetic
    engine    vattention itself, on a private vattd      figures  what came out
    run       all of it for one trace                    render   tables and JSON; plot: the picture

`command`, `models` and `trace` import neither torch nor numpy: vattctl runs without them.
"""
