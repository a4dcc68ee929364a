"""Where the facts come from. Nothing here hangs: what may (a driver, a socket) has a time within which it answers."""
