"""An incident under way: the driver of its machine, and the errands that it runs.

::

    driver         gives one domain's machine what happens, and carries out what it says
    reaction       a panic that goes as foreseen; moment: the facts of an input
    rush           first commands go first; precedence: of one domain
    gathering      joins panics that follow each other into one
    errands        slow work: collecting (evidence), dumping, relaunch
    outcome        the result of an exchange with a VM
    request        an operator's request; policy_in_force: what the log says of a policy
    waiting        incidents without a connection; adoption takes them up
    liveness       whether an idle QEMU still answers
    domains        all domains, and how each stands; services: what they share; storm: many at once
    records        an incident as plain values, for status and commands

Enters: a session's events and answers, operators' requests, a restart's findings. Leaves: commands
to the VM, entries of the journal, log lines, counts. ``rules.machine`` decides what is done.
"""
