"""Model files: found, hashed, and read without their weights."""
