"""A small double of sarathi-lean, the server that microsoft/vattention came with, as far as it meets `vattention`.

It runs on the CPU and computes nothing: tokens are written as attention wrappers write them, with values that say whose
they are, and read back after every step. `config` is how it is sized, `sequence` a request, `block_space_manager` and
`scheduler` what it believes to have and whom it so runs, `cache_engine` its calls, `attention` its writes, `engine` the
iteration.
"""
