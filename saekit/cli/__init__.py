"""The command line: `saekit --help`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that `sys.argv` names, and end the process with its exit status."""
    from saekit import environment

    environment.let_idle_threads_sleep()  # before anything loads OpenMP
    environment.use_free_cores()
    from saekit.cli.run import run

    sys.exit(run(sys.argv[1:]))
