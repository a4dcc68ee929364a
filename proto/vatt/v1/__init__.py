"""Version 1 of the wire. `vatt.proto` is the manual; the `_pb2` modules are generated from it by `make stubs`."""
