"""Devices and precisions: what is chosen, and what is said when that is impossible."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder, device, runtime
from pgembed.encoders.device import CPU_PROVIDER, CUDA_PROVIDER, Device
from pgembed.encoders.runtime import plan
from pgembed.exc import DeviceError, EncoderFilesError, EncoderOptionError


@pytest.fixture
def cuda_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if onnxruntime-gpu were installed."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])


def test_cuda_without_the_package(minilm_folder: Path) -> None:
    encoder = Encoder(minilm_folder, device="cuda")
    with pytest.raises(DeviceError, match=r"built without CUDA .* pip install 'pgembed\[gpu\]'"):
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


def test_session_that_fell_back() -> None:
    class Session:
        def get_providers(self) -> list[str]:
            return [CPU_PROVIDER]

    device.check_session(Session(), Device("cpu"))
    with pytest.raises(DeviceError, match=r"could not load CUDA's libraries.*onnxruntime-gpu\[cuda,cudnn\]"):
        device.check_session(Session(), Device("cuda"))


def test_auto_does_without_a_gpu_that_cannot_be_used(
    minilm: Encoder, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the driver were there and CUDA's libraries were not."""

    def fell_back(session: object, chosen: Device) -> None:
        if chosen.kind == "cuda":
            raise DeviceError("cuda", "no libraries", fix="Install them")

    monkeypatch.setattr(device, "choose", lambda name: Device("cpu" if name == "cpu" else "cuda"))
    monkeypatch.setattr("pgembed.encoders.runtime._open", opened_on_cpu(fell_back))
    with pytest.raises(DeviceError, match="no libraries"):
        Encoder(minilm_folder, device="cuda").encode_documents(["x"])
    vectors = Encoder(minilm_folder).encode_documents(["x"])
    assert np.abs(vectors - minilm.encode_documents(["x"])).max() < 1e-6
    assert "event=device device=cpu reason=" in caplog.text
    caplog.clear()
    assert Encoder(minilm_folder, precision="int8").encode_documents(["x"]).shape == (1, 384)
    assert not caplog.text


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
        patch.setattr("pgembed.encoders.runtime._WINDOW", 16)
        assert np.abs(encoder.encode_documents(texts) - whole).max() < 1e-6
