"""The dashboards, written once: as Grafana's JSON, and as consoles that need nothing but Prometheus.

`make dashboards` writes both; a test compares them with what is committed.
"""
