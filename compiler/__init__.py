"""Spec (and lock) to Triton model repository: a pure function of the spec, the lock and the model files."""
