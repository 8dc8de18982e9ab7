"""One module a command; see `tritonc.cli` for how they are found and what they return."""
