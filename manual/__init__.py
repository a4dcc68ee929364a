"""`python -m manual`: the reference of all commands, made from the commands themselves.

docs/vattctl.md and a man page each, from one walk over click's tree, so that a new command is in both without more.
click-man was tried: it leaves out what stands below the options (exit statuses, how sizes are written), has no section
of examples, and dates its pages with the day on which they are made.
"""
