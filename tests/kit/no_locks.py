"""A file system without locks: a library that makes flock and fcntl fail on the files below a folder, for commands of a test.

Loaded with LD_PRELOAD, it stands between the program and the C library, so that Python, SQLite and HDF5 all see it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(int descriptor) {
    char link[64], path[4096];
    const char *below = getenv("NO_LOCKS_BELOW");
    if (!below) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, below, strlen(below)) == 0;
}

static int refuse(void) {
    errno = atoi(getenv("NO_LOCKS_ERRNO"));
    return -1;
}

int flock(int descriptor, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return refused(descriptor) ? refuse() : real(descriptor, operation);
}

static int is_lock(int command) {
    return command == F_GETLK || command == F_SETLK || command == F_SETLKW
        || command == F_OFD_GETLK || command == F_OFD_SETLK || command == F_OFD_SETLKW;
}

#define WRAP(NAME)                                                      \
    int NAME(int descriptor, int command, ...) {                        \
        int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #NAME);           \
        va_list rest;                                                   \
        va_start(rest, command);                                        \
        void *argument = va_arg(rest, void *);                          \
        va_end(rest);                                                   \
        if (is_lock(command) && refused(descriptor)) return refuse();   \
        return real(descriptor, command, argument);                     \
    }

WRAP(fcntl)
WRAP(fcntl64)
"""


@cache
def library() -> Path:
    """The library, compiled once for each process; the test is skipped without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = Path(tempfile.mkdtemp(prefix="saekit-no-locks-"))
    atexit.register(shutil.rmtree, folder)
    source, built = folder / "no_locks.c", folder / "no_locks.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], check=True)
    return built


def environment(built: Path, below: Path, code: int) -> dict[str, str]:
    """The environment of a process in which locks on files below a folder fail with the error number `code`."""
    return {**os.environ, "LD_PRELOAD": str(built), "NO_LOCKS_BELOW": f"{below}/", "NO_LOCKS_ERRNO": str(code), "COLUMNS": "200"}
