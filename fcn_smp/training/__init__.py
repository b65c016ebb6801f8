"""Training with Lightning, which nothing outside this room imports."""
