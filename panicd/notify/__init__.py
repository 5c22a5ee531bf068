"""Tells others of incidents.

::

    notifier       what is still to be told, to whom, and when it is tried again
    webhook, hook  by an HTTP request, by a command; delivery: why one was not taken

Enters: the journal's outbox. Leaves: a request, or a process. Whoever acts on a panic never waits.
"""
