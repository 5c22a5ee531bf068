"""Services of the host that any room may use. They know no VM.

::

    logs           one JSON object a line, or systemd's journal; log_stream and backlog write
                   entries without delaying the caller
    metrics        Prometheus' text format; domain_series: the series of each domain
    timers         time limits of all domains; wall_clock: the time of day, and its jumps
    priority       lets a reaction to a panic go first; garbage: cycles are looked for in quiet
    problems       faults that keep panicd from its work, each logged once
    listening      a listening unix socket whose file stays
    terminal       printed output: text made printable, lists and tables as wide as the window
    sdnotify       tells systemd the daemon's state
    systemd        starts a unit over D-Bus; osinfo: libosinfo's facts about a system

Imports from ``panicd.rules`` only.
"""
