"""The demo: two engines, two tenants, one vattd. `python -m examples.demo` runs it; `make demo` sets it up first."""
