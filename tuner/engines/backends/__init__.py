"""Sources of the Python-based Triton backends; copied to a backend folder, they run inside Triton's stubs."""
