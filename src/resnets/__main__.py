"""`python -m resnets`."""

from resnets.cli import main

main()
