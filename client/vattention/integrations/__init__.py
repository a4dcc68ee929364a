"""Bridges from a serving engine's own cache to `vattention.KVCache`, one module an engine, imported by name.

Each needs its engine installed; `vattention` itself needs none of them.
"""
