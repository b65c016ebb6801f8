"""Data sets, one file each, and what is done to their images before the network sees them."""
