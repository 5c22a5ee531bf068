"""The kill matrix: panicd dies at every point of every plan; nothing is lost or done twice.

``gated`` is the daemon with a gate at each point, and ``gate`` the test's side of it; ``scenarios``
says what is to come of each policy, ``subjects`` are the QEMUs, ``cases`` carries one case out,
``verdict`` judges it, and ``matrix`` makes and runs all of them.
``python -m tests.kill`` runs all of them and prints the figures (``make kill-matrix``).
"""
