"""An incident as it goes on: who drives its machine, where it is kept, and where it waits.

Enters: a session's events and answers, what operators ask, what a restart finds. Leaves: commands
to the VM, entries of the journal, log lines, counts. ``driver`` carries out what ``rules.machine``
says; ``chronicle`` is an incident's record; ``waiting`` holds those without a connection, and
``adoption`` takes them up where something is to be done all the same.
"""
