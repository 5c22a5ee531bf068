"""An incident as it goes on: who drives its machine, and what that has done.

::

    driver         gives one domain's machine what happens, and carries out what it says
    reaction       a panic that goes as foreseen; rush: first commands go first; moment: what holds
    gathering      panics that follow each other, told of as one
    errands        what takes its time: collecting (evidence), dumping, relaunch
    outcome        how an exchange went
    request        what an operator asks; policy_in_force: what the log says of a policy
    waiting        incidents without a connection; adoption takes them up
    liveness       whether an idle QEMU still answers
    domains        all domains, and how each stands; services: what they share; storm: many at once
    records        an incident as plain values, for whoever looks at it

Enters: a session's events and answers, what operators ask, what a restart finds. Leaves: commands
to the VM, entries of the journal, log lines, counts. What is done is decided in ``rules.machine``.
"""
