"""One run of the command line, with the handling of errors, signals and closed pipes."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from saekit import terminal
from saekit.cli import completion, failure, output
from saekit.cli.commands import COMMANDS
from saekit.errors import ConfigError, SaekitError
from saekit.processes import leads
from saekit.progress import doing

_ClickError: type[Exception] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status.

    The status is 0, or 1 after an unexpected error, 2 after an error that :mod:`saekit.errors` names, 130 after Ctrl-C, 141 when
    the reader of the output has gone, 143 after SIGTERM.
    """
    speaks = leads()  # of several processes, only the first one prints
    terminal.prepare_streams()
    if asked := os.environ.get(completion.VARIABLE):
        from saekit.cli.app import root

        return completion.complete(root(), asked)
    with contextlib.ExitStack() as stack:
        if not speaks:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(_sigterm())
        stack.enter_context(_notices())
        stack.enter_context(output.answer())
        try:
            status = _command(arguments)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            terminal.discard_output(sys.stdout)
            return 128 + signal.SIGPIPE
        except Exception as error:
            with contextlib.suppress(BrokenPipeError):
                return failure.fail(error, as_json=speaks and "--json" in arguments)
            return 1
        except KeyboardInterrupt as stopped:
            _close_generators(stopped)
            return _stopped(stopped, arguments)


def _command(arguments: Sequence[str]) -> int:
    """Parse and run one command, without the handling of errors that typer does."""
    from saekit.cli.app import root

    command = root()
    try:
        with doing(f"running saekit {_name(arguments)}".rstrip()):
            with command.make_context("saekit", list(arguments)) as context:
                command.invoke(context)
            return 0
    except typer.Exit as ended:
        return ended.exit_code
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help page is already printed
            return 2
        raise _usage(error) from error


def _name(arguments: Sequence[str]) -> str:
    """The name of the command at the start of a command line; empty if the line starts with no command."""
    return next((name for length in (2, 1) if (name := " ".join(arguments[:length])) in COMMANDS), "")


def _usage(error: Any) -> SaekitError:
    """The error for arguments that the parser rejects."""
    context = getattr(error, "ctx", None)
    help_ = f"Try `{context.command_path} --help`." if context is not None else None
    message = error.format_message().rstrip(". ")
    return ConfigError(message if message.endswith((".", "?")) else f"{message}.", help_)


def _close_generators(stopped: BaseException) -> None:
    """Close the generators in the frames that an interruption has left, while the threads that serve them still run."""
    error: BaseException | None = stopped
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _stopped(stopped: KeyboardInterrupt, arguments: Sequence[str]) -> int:
    terminated = isinstance(stopped, Terminated)
    if leads():
        word = "terminated" if terminated else "interrupted"
        name = _name(arguments)
        again = bool(name) and COMMANDS[name].resumes
        with contextlib.suppress(OSError):
            terminal.write_line(f"{word}; run the same command again and it goes on from here" if again else word, stderr=True)
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Within the block, SIGTERM ends the command as Ctrl-C does, so that files are closed and locks released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """Within the block, warnings and log records appear as clean lines on stderr."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(OSError):
                terminal.write_line(self.format(record), stderr=True)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        with contextlib.suppress(OSError):
            terminal.write_line(f"warning: {message}", stderr=True)

    handler, root = Lines(logging.WARNING), logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        root.removeHandler(handler)
