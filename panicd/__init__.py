"""panicd applies a domain's crash policy when its guest's kernel panics.

::

    QMP session ─┐                                  ┌─► journal (durable first)
    libvirt ─────┼─ inputs ─► machine.step ─ effects ┼─► commands to the VM
    timers, ─────┤           (pure, sync,            ├─► evidence, dump, relaunch, signal
    operators ───┘            one table)             └─► told afterwards: log, metric, notice

    rules/   pure: values in, values out; in rules/machine the one machine for a panic
    dumps/   which pages a dump leaves out: page_classes, page_bitmap, page_filter, kdump_writer
    qemu/    what touches a QEMU: monitor, session, probe, process, discovery, coredump, evidence
    host/    or the host: config, journal, metrics, http, web, control, sdnotify, systemd, virsh
    incident/ driver gives one domain's machine what happens and carries out what it says; errands
             are what takes its time, outcome how that went; request: what an operator asks;
             policy_in_force: what is said of it; chronicle is an incident's record;
             waiting, adoption: those without a connection; liveness: whether an idle QEMU
             still answers
    here     relaunch, libvirt; counters counts; bundle_keeper removes old evidence; damaged_journal:
             what is set aside; services: what all share; timers; evidence, dump_queue, dumping:
             what is kept of a panic; connector finds and keeps domains, libvirts_own: what is
             never dialled; strangers: who dialled in and said nothing yet; problems: what keeps
             panicd from finding VMs; fleet: who is there; right_of_way: who goes first;
             storm_breaker; records: an incident as plain values; notifier tells others; daemon
             wires it
    answers/ what a daemon is asked: api, operators, holding, snapshot, audit
    page/    what a browser shows: pages, overview, panics, incident, evidence, parts,
             style
    cli/     what people type and see: program, deferred, commands, base, configured, moment,
             incident_commands, running, checking, probing, advising, arguments, demonstrating,
             export, filtering, render, render_changes, render_dumps, render_incident,
             incident_log, terminal, watching
    demo/    guests that panic, for people to look at

Imports go downwards only: rules know nobody, qemu and host know the rules but not each other.
"""

__version__ = "0.2.0"
