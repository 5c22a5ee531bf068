"""The running daemon: all of it wired together, and what it is asked.

::

    daemon         from start to stop
    control        the control socket; control_client: the commands' end of it
    api            what is answered there; operators and holding: what operators want done;
                   counter: where the page asks
    programs       whether what the configuration has run is there
"""
