"""Choosing the device: the requested one, or an error that says why it cannot be used.

ONNX Runtime silently falls back to the CPU when CUDA cannot be used. Here, that is an error if a GPU was
requested.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from pgembed.exc import DeviceError, EncoderOptionError, MissingExtraError

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"

_logger = logging.getLogger("pgembed.encoders")
_logged: set[str] = set()
_NOT_INITIALISED = 3  # what cuInit answers in a child whose parent has initialised CUDA
# The process in which CUDA was chosen: the driver knows no forked child.
_chosen_in: int | None = None
# Why ONNX Runtime could not use CUDA; true until the process ends, and in its children.
_fell_back: tuple[str, str] | None = None


@dataclass(frozen=True)
class Device:
    """A device: ``kind`` is ``"cpu"`` or ``"cuda"``, ``index`` the number of the GPU."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"cuda:{self.index}"


def check_name(device: str) -> None:
    """Refuse what is not a device, without looking at the machine.

    :raises EncoderOptionError: it is none of ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise EncoderOptionError("device", device, needed="auto, cpu, cuda or cuda:N")


def choose(device: str) -> Device:
    """The device to use.

    :raises DeviceError: CUDA was requested and cannot be used; or, with ``auto`` too, this process was forked
        from one that had opened CUDA.
    :raises MissingExtraError: ``onnxruntime`` is not installed.
    """
    global _chosen_in
    if device == "cpu":
        return Device("cpu")
    if _chosen_in not in (None, os.getpid()) and _fell_back is None:
        raise _forked(device)
    index = int(device.partition(":")[2] or 0)
    problem = _cuda_problem(index)
    if problem is None:
        _chosen_in = os.getpid()
        chosen = Device("cuda", index)
    elif device == "auto":
        chosen = Device("cpu")
    else:
        found, fix = problem
        raise DeviceError(device, found, fix=fix)
    if device == "auto":
        reason = f" reason={problem[0]!r}" if problem else ""
        log_once(logging.INFO, f"event=device device={chosen}{reason}")
    return chosen


def log_once(level: int, line: str) -> None:
    """Log a line that this process has not logged before."""
    if line not in _logged:
        _logged.add(line)
        _logger.log(level, "%s", line)


def check_session(session: Any, device: Device) -> None:
    """Refuse a session that fell back to the CPU.

    :raises DeviceError: it did.
    """
    global _fell_back
    if device.kind == "cuda" and CUDA_PROVIDER not in session.get_providers():
        offered = ", ".join(session.get_providers())
        found = f"ONNX Runtime could not load CUDA's libraries and offers {offered}"
        _fell_back = found, "Install them as packages: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        raise DeviceError(str(device), found, fix=_fell_back[1])


def runtime() -> Any:
    """The module ``onnxruntime``.

    :raises MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", needed_for="computing vectors") from error
    return onnxruntime


def _forked(device: str) -> DeviceError:
    return DeviceError(
        device,
        "CUDA was opened before this process was forked, and does not work in a forked child",
        fix="Open encoders after the fork: encode nothing before it, or use multiprocessing's start methods "
        "spawn or forkserver, or gunicorn without --preload. The CPU works: device='cpu'",
    )


def _cuda_problem(index: int) -> tuple[str, str] | None:
    """Why CUDA cannot be used and how to fix it, or ``None``.

    :raises DeviceError: this process was forked from one that had opened CUDA.
    """
    if _fell_back is not None:
        return _fell_back
    module = runtime()
    providers = module.get_available_providers()
    if CUDA_PROVIDER not in providers:
        return (
            f"onnxruntime {module.__version__} is built without CUDA (it offers {', '.join(providers)})",
            "Replace the package: pip uninstall onnxruntime, then pip install 'sqlalchemy-pgembed[gpu]'",
        )
    gpus = _gpus()
    if gpus is None:
        return (
            "the NVIDIA driver is not installed, or not visible here",
            "Install it; start a container with --gpus all",
        )
    if index >= gpus:
        return f"the driver shows {gpus} GPUs", f"Choose one below cuda:{gpus}, or see CUDA_VISIBLE_DEVICES"
    return None


def _gpus() -> int | None:
    """How many GPUs the driver shows, ``None`` without a driver.

    :raises DeviceError: this process was forked from one that had opened CUDA, by whatever library.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    started = driver.cuInit(0)
    if started == _NOT_INITIALISED:
        raise _forked("cuda")
    if started != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
