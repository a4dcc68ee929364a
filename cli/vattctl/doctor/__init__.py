"""`vattctl doctor`: what goes wrong in practice, and what to type.

Facts are collected at the edge (`probes`), each with a bound on how long it may take; what follows from them is decided
by pure checks (`checks`), a function each; `examine` says which checks there are.
"""
