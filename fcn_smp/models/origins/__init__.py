"""The networks of the projects that this package grew out of, for any encoder where that makes sense."""
