"""What follows from the facts: pure functions, each of which looks at one thing and returns a Finding."""
