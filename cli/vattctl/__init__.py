"""vattctl: what operators type."""
