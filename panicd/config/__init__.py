"""The configuration: YAML text in; frozen values out, or every mistake with its line and key.

::

    config         the whole of it; web, notify, starters: its parts; domain_rules: whose a rule is
    file           the text; yaml_document its nodes, section and values what is in them
    mistakes       what is wrong, and where
    places         where panicd keeps its files; control_place: where a running daemon is asked

Enters: a file. Leaves: ``Config``, whose policies are values of ``panicd.rules.settings``.
"""
