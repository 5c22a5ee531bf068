"""The record of every incident: safe before panicd does what it announces.

::

    journal      the thread that writes, and the queries; request: what it is asked
    database     how the record is kept in SQLite; schema, codec: its tables, and an entry's text
    intents      what panicd is about to do, in memory; intent_keeping: what a killed one left
    batch        what one transaction writes; ready: entries encoded before their time is known
    chronicle    one open incident: the one way in which an entry is added
    counters     what metrics and budgets count; totals: the same, kept when incidents are removed
    outbox       notifications that are still to be delivered
    signatures, summaries    what can be read without an incident's entries
    lookup       which incident an operator means
    file, error, damaged     its lock, its faults, and a damaged one

Enters: entries (``rules.incident``). Leaves: 'durable', and what was written before.
"""
