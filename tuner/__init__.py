"""Candidate to measurement to choice: engines, load generation, the measuring procedure and the search."""
