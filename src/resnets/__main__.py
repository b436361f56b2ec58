"""`python -m resnets`."""

from resnets.cli.main import main

main()
