"""A process with its own environment that runs pieces of Python, for settings that libraries read when they are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LOOP = """
import io, json, logging, sys
from saekit.errors import SaekitError
lines = sys.stdout
sys.stdout = sys.stderr
log = io.StringIO()
logging.getLogger().addHandler(logging.StreamHandler(log))
for line in sys.stdin:
    log.seek(0), log.truncate()
    space = {}
    try:
        exec(json.loads(line), space)
        answer = {"value": space.get("result")}
    except SaekitError as error:
        answer = {"error": type(error).__name__, "what": error.what, "hint": error.hint or ""}
    except Exception as error:
        answer = {"error": type(error).__name__, "what": f"untyped: {error}", "hint": ""}
    lines.write(json.dumps(answer | {"log": log.getvalue()}) + chr(10))
    lines.flush()
"""


@dataclass
class Answer:
    """What a piece of code gave: the value that it called `result`, or the typed error that it raised."""

    value: object = None
    error: str = ""
    what: str = ""
    hint: str = ""
    log: str = ""


class Worker:
    """The process, which runs while the object is used as a context manager.

    Args:
        environment: of the process.
        log: file for what it writes to stderr.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment, self._log = dict(environment), log

    def __enter__(self) -> Self:
        self._file = self._log.open("w")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._file}
        self._process = subprocess.Popen([sys.executable, "-c", _LOOP], env=self._environment, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._file.close()

    def __call__(self, code: str) -> Answer:
        """Run a piece of code in a namespace of its own."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-2000:]
        return Answer(**json.loads(line))
