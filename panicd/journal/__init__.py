"""The record of every incident: durable before what it announces is done.

::

    journal      the thread that writes, and what is asked of it
    database     how it lies in SQLite; schema, codec: its tables, and an entry's text
    batch        what one transaction writes; ready: entries encoded before their time is known
    chronicle    one incident as it goes on: the one way in which an entry is added
    counters     what metrics and budgets count; totals the same for good, when incidents are pruned
    outbox       notifications still to be delivered
    signatures, summaries    what is read without an incident's entries
    lookup       which incident an operator means
    file, error, damaged     its lock, its faults, and one that is set aside

Enters: entries (``rules.incident``). Leaves: 'durable', and what was written before.
"""
