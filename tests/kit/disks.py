"""File systems that are mounted for a test."""

from __future__ import annotations

import subprocess

import pytest


def mount(*arguments: str) -> None:
    """Mount a file system; skips the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
