"""Training with Lightning Fabric, which nothing outside this room imports."""
