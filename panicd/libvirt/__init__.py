"""The libvirt of this host: which domains it runs, and what it is told to do with them.

A domain of libvirt's is a second kind of VM behind the interface of the first (``qemu.exchange``):

- its commands are QMP's few that the machine gives, done by libvirt's API; its events are QEMU's
  own, which libvirt passes on. So policies, journal, budget, storms and recovery are the same;
- which start of the domain there is, and how its guest stands, is asked right before each command;
  where that is not what the events told, nothing is done, and the session ends and is made anew;
- ``<on_crash>`` of the live domain is set to preserve, and what it was goes into the metadata;
- who it is: the libvirt's URI, and the UUID that libvirt itself gives it;
- what is known of it, it is known before it panics. A libvirtd that is silent is told nothing, and
  costs the domain it is asked about no more than its time.

::

    known_domains   the domains as they start and end, and what libvirt says of each
    domain_monitor  one start of a domain, as a session has it
    look            how it stands, asked for right before a command
    qmp_words       libvirt's answers, in QMP's words
    domain_process  which process that is, as libvirt's own file tells
    memory          a stopped guest's memory, in parts or as a dump
    takeover        has libvirt preserve a domain that panics, and gives it back
    beside          what goes through libvirt where panicd has a QMP monitor of its own
    own_monitor     libvirt's own monitors, which are never dialled
    one_start       a call that one start of a domain is meant by, and never the next one
    once            a libvirt that is asked something once
    client          the few connections to one libvirt, and who waits for which
    connection      one of them, on trio; no call has a task
    requests        what may be asked; introduction: what a connection begins with
    protocol        what libvirt's remote protocol says of domains
    wire, xdr       its messages, and their bytes
    errors          whether libvirt was told, and so whether something may have been done

Enters: libvirt's events and answers. Leaves: what a session takes and gives.
"""
