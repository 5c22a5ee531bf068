"""The running daemon: all of it wired together, and its answers.

::

    daemon         from start to stop
    control        the control socket; control_client: the commands' end of it
    api            the answers on it; operators and holding: carry out what operators ask for;
                   counter: takes what the page asks for
    programs       checks whether the programs that the configuration names exist
"""
