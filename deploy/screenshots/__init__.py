"""The pictures in docs/screenshots: taken of a real run, `make screenshots`.

Two vattd on host memory, two tenants' engines on each that replay recorded requests, and a Prometheus over all of it.
To add a picture, add a Shot to `shots.py`.
"""
