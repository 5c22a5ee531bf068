"""``python -m panicd``."""

from panicd.cli import main

main(prog_name="panicd")
