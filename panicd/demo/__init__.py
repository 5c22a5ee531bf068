"""``panicd demo``: real QEMUs whose guests panic on purpose, and what panicd does about it.

::

    story    tells it: cases one after the other, what an operator sees, the count
    keeping  keeps a few VMs and panicd running, for people to try the commands on
    playing  what both need around them: a QEMU, a directory, an end
    cases    which policies and unusual events are shown, and what each must lead to
    proofs   what is checked without panicd; dump_file for dumps
    scene    one case with its VM; lab all of them, with panicd's configuration
    report   what is printed

    guests   programs of a few bytes that panic; qemu runs one, qmp watches it
    daemon   panicd as a process of its own; process, background: what both need

``guests``, ``qemu`` and ``qmp`` serve the tests too. panicd runs in a process of its own, and is
only asked on its control socket. So if both agree, two programs have seen the same.
"""
