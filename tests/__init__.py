"""The tests of panicd.

``make test`` has four processes run them (pytest-xdist): most of their time they wait. Each takes a
whole file at a time, so that what a file sets up is set up once, and the longest begin first
(``tests.conftest``). So a test shares nothing with those of other files: it has its own directory,
ports that nobody else is given, its own libvirtd in a mount namespace, and what is downloaded once
is waited for by all. ``make test ARGS=-n0`` runs them in one process, as a debugger wants it.
"""
