"""Reads a guest's own words on its panic: which line is the cause, and which panic it is.

::

    line          a line of a log, and how a guest's bytes become printable
    console       a console's bytes: the last boot's lines, without their prefixes
    heads         the first lines of all kinds of trouble that Linux reports
    consequences  the reasons of a panic that only follow from an earlier report
    cause         the first trouble of the cascade that ended in the panic
    foreign       the panic lines of other systems than Linux
    trace         the functions that a trouble happened in

``panicd.rules.signature`` makes a panic's signature of this. The guest wrote all these words: they
are data, may lie, and are bounded.
"""
