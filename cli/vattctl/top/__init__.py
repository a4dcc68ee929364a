"""`vattctl top`: vattds as they live, in a terminal.

What is shown is made by plain functions of answers and of a size; `frame` puts it together. `app` is the terminal
around it. Only it and `canvas` import textual, which takes a while.
"""
