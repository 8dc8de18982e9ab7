"""The contract: what people write (the spec) and what tritonc records (the lock, measurements)."""
