"""`python -m orchestrator` is `dcd`."""

from orchestrator.cli import main

main()
