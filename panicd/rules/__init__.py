"""What panicd knows and decides: values in, values out.

::

    machine/       the one machine for a panic
    policy, plan   the decision about a panic, and its steps; on_crash, settings: as configured
    recovery       how an open incident goes on; incident: its entries and states; ending: of a QEMU
    budget, storm  restarts that are left, many panics at once
    standing       how a domain stands, in one word; next_commands: what to do about it
    identity       whose a domain is; capability, panic_device, exposure: what its QEMU can do
    plugging       a panic device for a running VM
    qapi, payload, bug_check   QEMU's events, and a panic's payload in words
    command_line, qemu_args, io_ports, socket_path, guest_system, libvirt    how VMs are started
    libvirt_state  how a domain stands, in QEMU's words; libvirt_place: where a libvirt is reached
    operation, notification, unit_name    what operators ask, what others are told, units' names
    guest_memory/, guest_words, kernel_log, consoles   a stopped guest's own words
    panic_text/, last_words, signature    what these words say of the panic
    retention, shares          which bundles panicd keeps, and each user's share of the room
    printable, foreign_json    text and JSON of foreign origin

Nothing in this package is async, reads a clock, opens a file or logs; ``tests/test_layers.py``
checks this. Times are seconds since the epoch and come in as arguments.
"""
