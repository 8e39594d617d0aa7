"""`python -m medmvl`, which is what `torchrun -m medmvl` needs."""

from medmvl.cli.main import main

main()
