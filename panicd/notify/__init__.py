"""Tells others of incidents.

::

    notifier       which notifications are left, for whom, and when to try again
    webhook, hook  deliver by an HTTP request, by a command; delivery: why one was not accepted

Enters: the journal's outbox. Leaves: a request, or a process. Whoever acts on a panic never waits.
"""
