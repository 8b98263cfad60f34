"""The command line: `skipway study | models | connections | version`.

Nothing heavy is imported before a command needs it, so that `skipway --help` answers at once.
"""

from skipway.cli.app import main

__all__ = ["main"]
