"""What the two sides of vattd agree on: the wire (`vatt.v1`), page arithmetic, errors, and where the sockets are."""
