"""Devices and precisions: what is chosen, and what is said when that is impossible."""

from __future__ import annotations

import ctypes
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pgembed.encoders import Encoder
from pgembed.encoders.onnx import device, lanes, runtime
from pgembed.encoders.onnx.device import CPU_PROVIDER, CUDA_PROVIDER, Device
from pgembed.encoders.onnx.runtime import plan
from pgembed.exc import DeviceError, EncoderFilesError, EncoderOptionError


@pytest.fixture
def cuda_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if onnxruntime-gpu were installed."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])


def test_cuda_without_the_package(minilm_folder: Path) -> None:
    encoder = Encoder(minilm_folder, device="cuda")
    with pytest.raises(DeviceError, match=r"built without CUDA .* pip install 'sqlalchemy-pgembed\[gpu\]'"):
        encoder.encode_documents(["x"])


def test_cuda_without_a_driver(cuda_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_gpus", lambda: None)
    with pytest.raises(DeviceError, match=r"driver is not installed.*--gpus"):
        device.choose("cuda")
    assert device.choose("auto") == Device("cpu")


def test_cuda_with_too_few_gpus(cuda_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_gpus", lambda: 2)
    assert device.choose("cuda:1") == device.choose("cuda:1") == Device("cuda", 1)
    assert device.choose("auto") == Device("cuda", 0)
    with pytest.raises(DeviceError, match="shows 2 GPUs"):
        device.choose("cuda:2")


def test_session_that_fell_back(cuda_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_fell_back", None)
    monkeypatch.setattr(device, "_gpus", lambda: 1)

    class Session:
        def get_providers(self) -> list[str]:
            return [CPU_PROVIDER]

    device.check_session(Session(), Device("cpu"))
    with pytest.raises(DeviceError, match=r"could not load CUDA's libraries.*onnxruntime-gpu\[cuda,cudnn\]"):
        device.check_session(Session(), Device("cuda"))
    assert device.choose("auto") == Device("cpu")  # the libraries are no nearer at the next encoder
    with pytest.raises(DeviceError, match="could not load CUDA's libraries"):
        device.choose("cuda")


def test_auto_does_without_a_gpu_that_cannot_be_used(
    minilm: Encoder, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the driver were there and CUDA's libraries were not."""

    def fell_back(session: object, chosen: Device) -> None:
        if chosen.kind == "cuda":
            raise DeviceError("cuda", "no libraries", fix="Install them")

    monkeypatch.setattr(device, "_logged", set())
    monkeypatch.setattr(device, "choose", lambda name: Device("cpu" if name == "cpu" else "cuda"))
    monkeypatch.setattr("pgembed.encoders.onnx.runtime._open", opened_on_cpu(fell_back))
    with pytest.raises(DeviceError, match="no libraries"):
        Encoder(minilm_folder, device="cuda").encode_documents(["x"])
    vectors = Encoder(minilm_folder).encode_documents(["x"])
    assert np.abs(vectors - minilm.encode_documents(["x"])).max() < 1e-6
    assert "event=device device=cpu reason=" in caplog.text
    caplog.clear()
    assert Encoder(minilm_folder, precision="int8").encode_documents(["x"]).shape == (1, 384)
    assert not caplog.text


class Gpu:
    """A session of ONNX Runtime on a GPU: a real one on the CPU, or one whose runs end badly."""

    def __init__(self, session: Any, run: Callable[[Gpu], None] | None) -> None:
        self._session = session
        self._run = run

    def get_providers(self) -> list[str]:
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def io_binding(self) -> Any:
        return self if self._session is None else self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self._run(self) if self._run else self._session.run_with_iobinding(binding)

    def bind_cpu_input(self, name: str, array: Any) -> None: ...
    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: Any, place: int) -> None:
        self.output = (ctypes.c_float * math.prod(shape)).from_address(place)

    def synchronize_inputs(self) -> None: ...
    def synchronize_outputs(self) -> None: ...


def no_kernel(session: Gpu) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


def not_a_number(session: Gpu) -> None:
    session.output[:] = [math.nan] * len(session.output)


@pytest.fixture
def gpu(cuda_package: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Put in a GPU that cannot run the graphs named; the list that is given fills with those that are opened.

    ``run`` is what becomes of their runs; without it, ONNX Runtime itself refuses them at the opening, as
    operators that only CUDA has.
    """
    monkeypatch.setattr(device, "_gpus", lambda: 1)
    monkeypatch.setattr(device, "_logged", set())
    monkeypatch.setattr(device, "_chosen_in", None)
    monkeypatch.setattr(lanes, "_page_lock", lambda: None)

    def without(*refused: str, run: Callable[[Gpu], None] | None = None) -> list[str]:
        tried = []

        def opened(path: str, options: Any, *, providers: list[Any]) -> Any:
            if providers[0] == CPU_PROVIDER:
                return session(path, options, providers=providers)
            name = Path(path).name
            tried.append(name)
            if name not in refused:
                return Gpu(session(path, options, providers=[CPU_PROVIDER]), None)
            if run is not None:
                return Gpu(None, run)
            packed_graph = Path(path).with_name("model.cuda.onnx")
            return session(str(packed_graph), options, providers=[CPU_PROVIDER])

        session = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
        return tried

    return without


@pytest.mark.parametrize("run", [None, no_kernel, not_a_number])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_without_kernels_for_packed_texts_runs_the_padded_graph(
    minilm: Encoder,
    minilm_folder: Path,
    gpu: Callable[..., list[str]],
    run: Callable[[Gpu], None] | None,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "pgembed")
    tried = gpu("model.cuda.onnx", run=run)
    texts = ["a text", "a longer text than that", ""]
    for _ in range(2):
        vectors = Encoder(minilm_folder, device=name).encode_documents(texts)
        assert np.abs(vectors - minilm.encode_documents(texts)).max() < 1e-6
    assert tried == ["model.cuda.onnx", "model.onnx"] * 2
    (line,) = [each.message for each in caplog.records if each.name.startswith("pgembed.encoders")]  # once
    assert line.startswith("event=precision device=cuda:0 precision=fp32 reason=")
    reasons = {None: "it cannot run model.cuda.onnx", no_kernel: "no kernel image", not_a_number: "NaN"}
    assert reasons[run] in line


@pytest.mark.parametrize("run", [None, no_kernel])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_half_precision_that_was_asked_for_is_not_exchanged(
    minilm_folder: Path, gpu: Callable[..., list[str]], run: Callable[[Gpu], None] | None, name: str
) -> None:
    tried = gpu("model.cuda.onnx", run=run)
    with pytest.raises(DeviceError, match=r"cannot run model\.cuda\.onnx .*precision='fp32' or device='cpu'"):
        Encoder(minilm_folder, device=name, precision="fp16").encode_documents(["x"])
    assert tried == ["model.cuda.onnx"]


def test_a_gpu_that_runs_nothing(
    minilm_folder: Path, gpu: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pgembed")
    tried = gpu("model.cuda.onnx", "model.onnx", run=no_kernel)
    with pytest.raises(DeviceError, match=r"cannot run model\.onnx \(no kernel"):
        Encoder(minilm_folder, device="cuda").encode_documents(["x"])
    assert tried == ["model.cuda.onnx", "model.onnx"]
    assert not caplog.records
    assert Encoder(minilm_folder).encode_documents(["x"]).shape == (1, 384)
    assert "event=device device=cpu reason=" in caplog.text


def test_damaged_files_are_no_fault_of_the_gpu(
    minilm_folder: Path, tmp_path: Path, gpu: Callable[..., list[str]]
) -> None:
    gpu()
    for path in minilm_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.cuda.onnx").unlink()
    (tmp_path / "model.cuda.onnx").write_bytes(b"damaged")
    with pytest.raises(EncoderFilesError, match="SHA-256"):
        Encoder(tmp_path).encode_documents(["x"])


def opened_on_cpu(check: Callable[[object, Device], None]) -> Callable[..., object]:
    """As the original, after the check of a device that cannot be used."""
    original = runtime._open

    def opened(path: Path, chosen: Device, threads: int) -> object:
        check(None, chosen)
        return original(path, chosen, threads)

    return opened


def test_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(device, "_logged", set())
    with caplog.at_level(logging.INFO, "pgembed.encoders"):
        device.choose("auto")
        device.choose("auto")
    (line,) = [record.message for record in caplog.records]
    assert re.fullmatch(r"event=device device=cpu reason='[^']+'", line)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_what_is_no_device(minilm_folder: Path, name: str) -> None:
    with pytest.raises(EncoderOptionError, match="cuda:N"):
        Encoder(minilm_folder, device=name)


def test_plans(minilm: Encoder) -> None:
    cpu, cuda = Device("cpu"), Device("cuda")
    int8 = minilm.spec.replace(precision="int8")
    assert plan(cpu, "auto", minilm.spec).graph == plan(cpu, "fp32", minilm.spec).graph == "model.onnx"
    assert plan(cpu, "int8", int8).graph == "model.int8.onnx"
    assert plan(cuda, "auto", minilm.spec).graph == plan(cuda, "fp16", minilm.spec).graph == "model.cuda.onnx"
    assert plan(cuda, "fp32", minilm.spec).graph == "model.onnx"
    ready = minilm.spec.replace(files={"model.onnx": ""})
    assert plan(cuda, "auto", ready).graph == "model.onnx"
    for where, precision, spec in (
        (cuda, "int8", int8),
        (cpu, "fp16", int8),
        (cpu, "int8", ready),
        (cuda, "fp16", ready),
    ):
        with pytest.raises(EncoderOptionError, match="precision"):
            plan(where, precision, spec)


def test_int8_is_another_class_of_vectors(minilm: Encoder, minilm_folder: Path) -> None:
    texts = [f"sentence {i} about subject {i * i}" for i in range(20)]
    exact = minilm.encode_documents(texts)
    with Encoder(minilm_folder, precision="int8") as encoder:
        close = encoder.encode_documents(texts)
    assert encoder.fingerprint != minilm.fingerprint
    assert Encoder(minilm_folder, precision="fp32").fingerprint == minilm.fingerprint
    assert 0.97 < (exact * close).sum(axis=1).min() < 0.99999


def test_altered_weights_are_found(minilm_folder: Path, tmp_path: Path) -> None:
    for path in minilm_folder.iterdir():
        if path.name != "weights.bin":
            (tmp_path / path.name).symlink_to(path)
    content = bytearray((minilm_folder / "weights.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(EncoderFilesError, match=r"weights\.bin.*SHA-256"):
        Encoder(tmp_path).encode_documents(["x"])


def test_memory_does_not_grow_with_the_number_of_texts(minilm_folder: Path) -> None:
    """Windows bound it; what is the same in two windows is the same vector."""
    with Encoder(Path(__file__).parents[2] / "golden" / "none", fingerprint="0" * 32, dimensions=3) as stated:
        assert stated.encode_documents([]).shape == (0, 3)
    texts = ["a", "b"] * 10 + [str(i) for i in range(50)]
    with Encoder(minilm_folder) as encoder, pytest.MonkeyPatch.context() as patch:
        whole = encoder.encode_documents(texts)
        patch.setattr("pgembed.encoders.onnx.runtime._WINDOW", 16)
        assert np.abs(encoder.encode_documents(texts) - whole).max() < 1e-6
