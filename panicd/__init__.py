"""panicd applies a domain's crash policy when its guest's kernel panics.

::

    QMP session ─┐                                  ┌─► journal (durable first)
    libvirt ─────┼─ inputs ─► machine.step ─ effects ┼─► commands to the VM
    timers, ─────┤           (pure, sync,            ├─► evidence, dump, relaunch, signal
    operators ───┘            one table)             └─► told afterwards: log, metric, notice

Each folder is a room with one subject, and its ``__init__`` says what is in it. A room imports from
those above it in this list, never from one below:

::

    rules/     what panicd knows and decides: pure values; rules/machine is the machine above
    host/      what every room may need of the host: logs, metrics, timers
    config/    the configuration
    journal/   the record of every incident
    qemu/      one QEMU: its monitor, its process, its guest's memory
    libvirt/   the libvirt of this host
    evidence/  what is kept of a panic besides a dump
    dumps/     a guest's memory, in a file
    incident/  an incident as it goes on: the machine's driver, and what it has done
    fleet/     which VMs there are, who is connected to them, how they stand
    notify/    tells others of incidents
    web/       what is served over HTTP
    service/   the running daemon, and its control socket
    demo/      guests that panic, for people to look at; it knows rules and the control socket only
    cli/       what people type and see
"""

__version__ = "0.2.0"
