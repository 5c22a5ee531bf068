"""What every room may need of the host, and knows no VM.

::

    logs           one JSON object a line, or systemd's journal; log_stream and backlog keep them
                   out of everybody's way
    metrics        Prometheus' text format; domain_series: what a scrape tells of each domain
    timers         time limits of all domains; wall_clock: when the time of day was set
    priority       lets a reaction to a panic go first
    problems       what keeps panicd from its work, told once
    listening      a listening unix socket whose file stays
    terminal       what people see: text made printable, lists and tables as wide as the window
    sdnotify       tells systemd how the daemon fares
    systemd        starts a unit over D-Bus; osinfo: what libosinfo knows of a system

Imports from ``panicd.rules`` only.
"""
