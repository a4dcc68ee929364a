"""vattd: one owner for a device's KV-cache pages. It creates them, lends them to engines, and gets them back."""

__version__ = "0.1.0"
