"""Floor 2, tasks: what is shown to a backbone, what must be said, and how it is judged. One file per kind.

A task is a module with a ``Section``, the ``ABILITY`` it asks of a backbone family, and functions that know neither
the loop nor a particular model.
"""
