"""What ``panicd demo`` runs: guests small enough to write by hand, that panic on purpose."""
