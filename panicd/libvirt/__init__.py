"""The libvirt of this host: which domains it runs, and what panicd tells it to do with them.

A libvirt domain is a second kind of VM behind the interface of the first (``qemu.exchange``):

- libvirt's API does the few QMP commands that the machine gives. libvirt passes on QEMU's own
  events. So policies, journal, budget, storms and recovery are the same;
- right before each command panicd asks which start of the domain there is, and how its guest
  stands. If the events told otherwise, panicd does nothing, and a new session replaces this one;
- panicd sets the live domain's ``<on_crash>`` to preserve, and notes the old value in the metadata;
- the libvirt's URI and the UUID that libvirt gives a domain identify it;
- panicd learns about a domain before it panics. It tells a silent libvirtd nothing, and that
  libvirtd costs the domain no more than a call's time limit.

::

    known_domains   the domains as they start and end, and what libvirt says of each
    domain_monitor  one start of a domain, as a session has it
    look            how the domain stands, asked right before a command
    qmp_words       libvirt's answers, in QMP's words
    domain_process  the domain's QEMU process, as libvirt's own file tells
    memory          a stopped guest's memory, in parts or as a dump
    takeover        has libvirt preserve a domain that panics, and gives it back
    beside          what goes through libvirt where panicd has a QMP monitor of its own
    own_monitor     libvirt's own monitors, which are never dialled
    one_start       a call to one start of a domain, and never to the next one
    once            a connection to a libvirt for a single question
    client          the few connections to one libvirt, and who waits for which
    connection      one of them, on trio; no call has a task
    requests        the calls that panicd makes; introduction: those that begin a connection
    protocol        what libvirt's remote protocol says of domains
    wire, xdr       its messages, and their bytes
    errors          whether the call reached libvirt, and so whether libvirt may have acted

Enters: libvirt's events and answers. Leaves: what a session takes and gives.
"""
