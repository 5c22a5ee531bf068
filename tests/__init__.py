"""The tests of panicd."""
