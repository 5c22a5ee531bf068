"""Finding monitors: ``panicd.fleet.discovery``."""
