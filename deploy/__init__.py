"""What runs vattd in production, where it is written in Python: the dashboards' source and the pictures of the docs."""
