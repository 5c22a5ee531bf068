"""panicd decides, at once and for good, what happens when a guest's kernel panics.

::

    QMP socket ── monitor ──► qapi.Event ── policy.decide ──► Decision(action, reason)
                                   │                              │
        connector ► supervisor ◄───┘          plan.make_plan ──► Plan(steps)
            │           │                                         │
          fleet      chronicle ◄──────── results ◄──────────── executor
                        └──► journal · metrics · log

    rules/   pure: values in, values out
    qemu/    what touches a QEMU: monitor, session, probe, process, discovery, coredump, evidence
    host/    what touches the host: config, journal, metrics, http, control, logs, sdnotify, virsh
    here     executor (with relaunch, libvirt) runs one plan; chronicle, tally: an incident's
             record, its counts; responder responds to a panic; supervisor looks after one domain;
             connector finds and keeps them; fleet, waiting, orphans, hung: who is there, waits, is
             gone or hangs; storm_breaker; operators, snapshot, api: what people ask; daemon wires
             it; cli, render, probing, demo: what people type and see

Imports go downwards only: rules know nobody, qemu and host know the rules but not each other.
"""

__version__ = "0.1.0"
