"""Worker processes, as an operator starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL

PGEMBED = [sys.executable, "-W", "error", "-c", "from pgembed.cli.main import main; main()"]
ROOT = Path(__file__).parents[3]
MODELS = "tests.acceptance.filling.models:Base"


def start(url: URL, *arguments: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """``pgembed ...`` on the database, in the background; its output in ``log`` or in pipes."""
    variables = {**os.environ, "PGEMBED_URL": url.render_as_string(hide_password=False), **environment}
    variables |= {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    stdout: Any = subprocess.PIPE
    stderr: Any = subprocess.PIPE
    if log is not None:
        stdout = stderr = log.open("a")
    try:
        return subprocess.Popen(
            [*PGEMBED, *arguments], text=True, cwd=ROOT, env=variables, stdout=stdout, stderr=stderr
        )
    finally:
        if log is not None:
            stdout.close()


def run(url: URL, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``pgembed ...`` on the database, to its end."""
    process = start(url, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds, and fail if it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
