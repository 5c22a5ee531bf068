"""panicd decides, at once and for good, what happens when a guest's kernel panics.

::

    QMP socket ── monitor ──► qapi.Event ── policy.decide ──► Decision(action, reason)
                                   │                              │
        connector ► supervisor ◄───┘          plan.make_plan ──► Plan(steps)
            │           │                                         │
          fleet      chronicle ◄──────── results ◄──────────── executor
                        └──► journal · metrics · log

    rules/   pure: values in, values out
    dumps/   which pages a dump leaves out: page_classes, page_bitmap, page_filter, kdump_writer
    qemu/    what touches a QEMU: monitor, session, probe, process, discovery, coredump, evidence
    host/    or the host: config, journal, metrics, http, web, control, sdnotify, systemd, virsh
    here     executor (with relaunch, libvirt) runs one plan; chronicle, tally: an incident's
             record, its counts; bundle_keeper removes old evidence; damaged_journal: what is
             set aside; services: what all share; libvirts_own: what is never dialled;
             responder (with sight, situation, own_time, enforcing, evidence) responds to a panic;
             supervisor (with liveness) looks after one domain; connector finds and keeps them;
             strangers: who dialled in and said nothing yet; problems: what keeps panicd from
             finding VMs; fleet, waiting, orphans, hung: who is there, waits, is gone or hangs;
             dump_queue, dumping: whose dump comes when; right_of_way: who goes first;
             storm_breaker; records: an incident as plain values; notifier tells others; daemon
             wires it
    answers/ what a daemon is asked: api, operators, holding, snapshot, audit
    page/    what a browser shows: pages, overview, panics, incident, evidence, parts,
             style
    cli/     what people type and see: commands, base, incident_commands, moment, checking,
             probing, advising, export, filtering, render, render_changes, render_dumps,
             render_incident, incident_log, terminal
    demo/    guests that panic, for people to look at

Imports go downwards only: rules know nobody, qemu and host know the rules but not each other.
"""

__version__ = "0.1.0"
