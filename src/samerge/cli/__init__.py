"""The command line: one command a file, all of them thin. torch is imported inside the commands that need it.

To add a command, write a file with one function and add a line to `app.py`.
"""

from samerge.cli.app import app, run

__all__ = ["app", "run"]
