"""What a guest's own words say of its panic: which line is the cause, and which panic it is.

::

    line          a line of a log, and how a guest's bytes become printable
    console       a console's bytes: the last boot's lines, without what stands before their words
    heads         the first lines of all kinds of trouble that Linux reports
    consequences  the reasons of a panic that only follow from something said before
    cause         the first trouble of the cascade that ended in the panic
    foreign       the panic lines of other systems than Linux
    trace         the functions that a trouble happened in

``panicd.rules.signature`` makes of it what tells one panic from another. All of it was written by
the guest: it is data, it may lie, and it is bounded.
"""
