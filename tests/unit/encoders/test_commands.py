"""The commands about encoders, run in this process."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from pgembed.cli import encode, encoders, serve
from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.serving import Limits, Server
from pgembed.exc import EncoderNotFoundError, EncoderServerError, TextError
from tests.unit.encoders.models import MODELS

ROOT = Path(__file__).parents[3]
LINES = ["How do I reset my password?", "", "naïve café", "word " * 300, "  blanks stay  "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(MODELS / "bert", tmp_path_factory.mktemp("commands") / "tiny")


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    application = typer.Typer()
    for module in (encode, encoders, serve):
        module.register(application)
    return application


def test_encode_lines(app: typer.Typer, folder: Path) -> None:
    wanted = Encoder(folder).encode_documents(LINES)
    content = "\n".join(LINES).encode() + b"\n"
    result = CliRunner().invoke(app, ["encode", "--encoder", str(folder)], input=content)
    assert result.exit_code == 0, result.output
    rows = [np.array(json.loads(line), dtype=np.float32) for line in result.stdout.splitlines()]
    assert np.array_equal(np.stack(rows), wanted)  # to the last bit
    assert result.stderr.rstrip() == "1 texts were cut at 40 tokens"
    pgvector = ["encode", "--encoder", str(folder), "--format", "pgvector", "--queries"]
    result = CliRunner().invoke(app, pgvector, input="a\r\nb")
    first, second = result.stdout.splitlines()
    assert " " not in first
    assert np.allclose(json.loads(first), Encoder(folder).encode_queries(["a"])[0])
    assert np.allclose(json.loads(second), Encoder(folder).encode_queries(["b"])[0])


def test_encode_files_to_numpy(
    app: typer.Typer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.cli.encode._WINDOW", 3)
    texts = [f"text {i}" for i in range(20)]
    for index in (0, 1):
        (tmp_path / f"{index}.txt").write_text("\n".join(texts[index * 10 : index * 10 + 10]) + "\n")
    arguments = [str(tmp_path / "0.txt"), str(tmp_path / "1.txt"), "--format", "npy"]
    result = CliRunner().invoke(app, ["encode", "--encoder", str(folder), *arguments])
    assert result.exit_code == 2
    target = tmp_path / "vectors.npy"
    result = CliRunner().invoke(
        app, ["encode", "--encoder", str(folder), *arguments, "--output", str(target)]
    )
    assert result.exit_code == 0, result.output
    assert np.abs(np.load(target) - Encoder(folder).encode_documents(texts)).max() < 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt", "vectors.npy"]


def test_encode_into_what_is_no_file(folder: Path, app: typer.Typer, tmp_path: Path) -> None:
    """Pipes and devices are written to, never replaced; links are followed."""
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    arguments = ["encode", "--encoder", str(folder), "--output"]
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        assert CliRunner().invoke(app, [*arguments, str(pipe)], input="a\nb\n").exit_code == 0
        assert len(read.result(10).splitlines()) == 2
    assert pipe.is_fifo()
    target.write_text("old")
    link.symlink_to(target)
    assert CliRunner().invoke(app, [*arguments, str(link)], input="a\n").exit_code == 0
    assert link.is_symlink()
    assert len(json.loads(target.read_text())) == Encoder(folder).dimensions
    result = CliRunner().invoke(app, [*arguments, str(tmp_path)], input="a\n")
    assert isinstance(result.exception, IsADirectoryError)
    result = CliRunner().invoke(app, [*arguments, str(pipe), "--format", "npy"], input="a\n")
    assert result.exit_code == 2


@pytest.mark.parametrize(("closing", "said"), [("<&-", "standard input"), (">&-", "standard output")])
def test_encode_without_streams(folder: Path, closing: str, said: str) -> None:
    command = [sys.executable, "-c", "from pgembed.cli.main import main; main()", "encode", "--encoder"]
    line = f"{shlex.join([*command, str(folder)])} {closing}"
    result = subprocess.run(line, shell=True, text=True, stderr=subprocess.PIPE, cwd=ROOT)
    assert result.returncode == 2
    assert f"{said} is closed" in result.stderr


def test_encode_what_is_no_text(app: typer.Typer, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    result = CliRunner().invoke(
        app, ["encode", "--encoder", str(folder), "--output", str(target)], input=b"fine\n\xff\xfe\n"
    )
    assert isinstance(result.exception, TextError)
    assert str(result.exception) == "text 1: found the byte 0xff, which is not UTF-8"
    assert list(tmp_path.iterdir()) == []  # nothing half-written
    result = CliRunner().invoke(app, ["encode", "--encoder", "nowhere"], input="x")
    assert isinstance(result.exception, EncoderNotFoundError)


def test_export_and_show(
    app: typer.Typer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(
        app, ["export", str(MODELS / "bert"), str(tmp_path / "again"), "--name", "again"]
    )
    fingerprint = Encoder(folder).fingerprint
    assert fingerprint in result.stdout
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["encoders", "show", str(tmp_path / "again")])
    for shown in (fingerprint, "pooling: mean, normalize", "40 tokens (the model's limit is 50)"):
        assert shown in result.stdout
    monkeypatch.setenv("PGEMBED_ENCODERS", str(tmp_path))
    assert (
        json.loads(CliRunner().invoke(app, ["encoders", "show", "again", "--json"]).stdout)["name"] == "again"
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "encoder.json").write_text("{}")
    listed = CliRunner().invoke(app, ["encoders", "list"]).stdout
    assert fingerprint in listed
    assert "unreadable" in listed


def test_serve_starts_answers_and_stops(folder: Path) -> None:
    code = (
        "import typer; from pgembed.cli import serve, encode; app = typer.Typer(); serve.register(app); "
        f"encode.register(app); app(['serve', '--encoder', {str(folder)!r}, '--port', '0', '--texts', '3'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    with process.stdout as output:
        said = output.readline().strip()
        assert Encoder(folder).fingerprint in said
        remote = Encoder.remote(said.rpartition(" ")[2])
        assert np.abs(remote.encode_documents(["x"]) - Encoder(folder).encode_documents(["x"])).max() < 1e-6
        with pytest.raises(EncoderServerError, match="413: 4 texts in one request; at most 3"):
            remote.encode_documents(["a", "b", "c", "d"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_serve_leaves_an_encoder_that_still_computes(
    app: typer.Typer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads cannot be ended, and may abort a process that ends as usual."""
    left: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", left.append)
    for at_rest in (True, False):
        stopped = lambda server, at_rest=at_rest: server.shutdown() is None and at_rest  # noqa: E731
        monkeypatch.setattr(Server, "serve_forever", stopped)
        CliRunner().invoke(app, ["serve", "--encoder", str(folder), "--port", "0"])
        assert left == ([] if at_rest else [0])


def test_the_options_of_serve_are_the_limits_of_a_server(
    app: typer.Typer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 2**20
    wanted = Limits(
        texts=1,
        waiting=2,
        seconds=3,
        pass_seconds=4,
        connections=5,
        idle=6,
        header_seconds=7,
        body_seconds=8,
        answer_seconds=9,
        stop_seconds=10,
        body=11 * mib,
        arriving=12 * mib,
        held=13 * mib,
    )
    options = [
        "texts",
        "waiting",
        "wait-seconds",
        "pass-seconds",
        "connections",
        "idle-seconds",
        "header-seconds",
        "body-seconds",
        "answer-seconds",
        "stop-seconds",
        "body-mib",
        "arriving-mib",
        "held-mib",
    ]
    servers: list[Server] = []
    monkeypatch.setattr(Server, "serve_forever", lambda server: servers.append(server) is None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    arguments = itertools.chain(*((f"--{name}", str(value)) for value, name in enumerate(options, 1)))
    result = CliRunner().invoke(app, ["serve", "--encoder", str(folder), "--port", "0", *arguments])
    assert result.exit_code == 0, result.output
    servers[0].shutdown()
    assert servers[0].limits == wanted
    for name in options:
        result = CliRunner().invoke(app, ["serve", "--encoder", str(folder), f"--{name}", "0"])
        assert result.exit_code == 2
