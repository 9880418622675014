"""`python -m raytrain`."""

from raytrain.cli.main import main

main()
