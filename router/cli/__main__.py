"""`python -m router.cli` is `triptych`."""

from router.cli import main

main()
