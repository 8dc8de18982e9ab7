"""`python -m tritonc`."""

from tritonc.cli import main

main()
