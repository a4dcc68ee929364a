"""Several tenants' request traces at the same time, over vattd's own policy, in virtual time."""
