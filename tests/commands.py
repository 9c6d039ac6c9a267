"""``pgembed ...`` as an operator starts it, in a process of its own or, which is quicker, in this one."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

from pgembed.cli.main import main

PGEMBED = [sys.executable, "-W", "error", "-c", "from pgembed.cli.main import main; main()"]
ROOT = Path(__file__).parents[1]
#: A terminal without colours that is wide enough for every table.
TERMINAL = {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}


def call(*arguments: str, stdin: str = "", **environment: str) -> CompletedProcess[str]:
    """In this process, without the second that importing takes; an error that is not shown is raised."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    root = logging.getLogger()
    handlers = root.handlers[:]
    code = 0
    with (
        patch.dict(os.environ, TERMINAL | environment),
        patch.object(sys, "argv", ["pgembed", *arguments]),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        finally:
            root.handlers[:] = handlers
    shown = []
    for stream in (out, err):
        stream.seek(0)
        shown.append(stream.read())
    return CompletedProcess(arguments, code, *shown)


def start(*arguments: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """A process in the background; its output in ``log`` or in pipes."""
    stdout: Any = subprocess.PIPE
    stderr: Any = subprocess.PIPE
    if log is not None:
        stdout = stderr = log.open("a")
    try:
        return subprocess.Popen(
            [*PGEMBED, *arguments],
            text=True,
            cwd=ROOT,
            env=os.environ | TERMINAL | environment,
            stdout=stdout,
            stderr=stderr,
        )
    finally:
        if log is not None:
            stdout.close()


def run(*arguments: str, stdin: str = "", **environment: str) -> CompletedProcess[str]:
    """A process, to its end."""
    return subprocess.run(
        [*PGEMBED, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | TERMINAL | environment,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds, and fail if it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
