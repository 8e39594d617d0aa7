"""Entry point of `python -m medmvl` and `torchrun -m medmvl`."""

from medmvl.cli.main import main

main()
