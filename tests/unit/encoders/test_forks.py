"""Forks after an encoder was opened: children work, and end with the status that they ended with."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pgembed.encoders import export_onnx, forks
from tests.unit.encoders.models import MODELS

PATIENCE = 60.0  # seconds; what takes longer hangs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that is opened quickly."""
    return export_onnx(MODELS / "bert", tmp_path_factory.mktemp("forks") / "bert")


def python(*arguments: str, **environment: str) -> str:
    """What a Python program prints."""
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=10 * PATIENCE,
        env={**os.environ, **environment},
    ).stdout


@pytest.fixture(scope="module", params=["texts", "pairs"])
def found(request: pytest.FixtureRequest, folder: Path, scoring: Callable[[str], Path]) -> dict[str, Any]:
    """How the children of ``forking.py`` end, with the setting under which tokenizers' threads are used."""
    program = str(Path(__file__).with_name("forking.py"))
    arguments = [str(folder)] if request.param == "texts" else [str(scoring("bert")), "pairs"]
    answer: dict[str, Any] = json.loads(python(program, *arguments, TOKENIZERS_PARALLELISM="true"))
    return answer


@pytest.mark.parametrize(
    ("scenario", "status"),
    [
        ("imported_only", 0),
        ("nothing", 0),
        ("exits_with_7", 7),
        ("exits_with_a_message", 1),
        ("raises", 1),
        ("exits_at_once_with_5", 5),
        ("is_terminated", -15),
        ("encodes_and_exits_with_3", 3),
        ("encodes_under_asyncio", 0),
        ("only_closes", 0),
        ("forgets", 0),
        ("opens_another", 0),
        ("has_a_child_that_encodes_and_exits_with_6", 6),
        ("encodes_and_has_a_child_that_does", 0),
        ("becomes_another_program", 8),
        ("while_another_thread_encodes", [0] * 5),
        ("fork", 4),
        ("forkserver", 4),
        ("spawn", 4),
        ("after_closing", 7),
    ],
)
def test_a_child_ends_with_its_own_status(found: dict[str, Any], scenario: str, status: object) -> None:
    assert found[scenario] == status


def test_a_child_leaves_nothing_out_at_its_end(found: dict[str, Any]) -> None:
    """Python's handlers of before and after the fork, its files, libc's files, and libc's later handlers."""
    assert found["output"] == "Python's buffer, libc's buffer, after, before, libc's handler\n"


OPENING = """
import os, signal, sys, threading, time
from pgembed.encoders import Encoder

encoder = Encoder(sys.argv[1])
opening = threading.Thread(target=encoder.encode_documents, args=(["parent"],))
opening.start()
while sys.argv[2] not in sys.modules:  # where its import begins
    time.sleep(0.0001)
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    encoder.encode_documents(["child"])
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("module", ["onnxruntime", "onnxruntime.capi", "tokenizers"])
def test_a_fork_waits_until_an_encoder_is_open(folder: Path, module: str) -> None:
    """Otherwise the child would wait for locks that no thread of its own holds."""
    assert python("-c", OPENING, str(folder), module) == "3\n"


APPLICATION = """
import os
from pgembed.encoders import Encoder

encoder = Encoder({folder!r})
if {preload}:
    encoder.encode_documents(["before the fork"])

def application(environ, start_response):
    shape = encoder.encode_documents(["a request"]).shape
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{os.getpid()}} {{shape[0]}}".encode()]
"""


@pytest.mark.parametrize("preload", [True, False])
def test_gunicorn(folder: Path, tmp_path: Path, preload: bool) -> None:
    """A worker that has answered its requests makes room for the next one, and the server stops at once."""
    (tmp_path / "app.py").write_text(APPLICATION.format(folder=str(folder), preload=preload))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [
        "--bind",
        f"127.0.0.1:{port}",
        "--max-requests",
        "1",
        "--timeout",
        "600",
        "--log-level",
        "error",
    ]
    options += ["--graceful-timeout", "600", "--no-control-socket", *(["--preload"] if preload else [])]
    server = subprocess.Popen([sys.executable, "-m", "gunicorn", *options, "app:application"], cwd=tmp_path)
    try:
        workers = [asked(port) for _ in range(3)]
        assert len(set(workers)) == 3
        server.terminate()
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()


def asked(port: int) -> str:
    """The worker that answers, once there is one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", "/")
            worker, count = connection.getresponse().read().decode().split()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            assert count == "1"
            return worker
        finally:
            connection.close()


CUDA = """
import os, sys
import onnxruntime
from pgembed.encoders import Encoder
from pgembed.encoders.onnx import device
from pgembed.exc import DeviceError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
session = onnxruntime.InferenceSession

class OnGpu(session):  # the padded graph, which runs on the CPU as well
    def __init__(self, path, options, providers):
        session.__init__(self, path, options, providers=[CPU])
        self.get_providers = lambda: [CUDA, CPU] if CPU != providers[0] else [CPU]

onnxruntime.get_available_providers = lambda: [CUDA, CPU]
onnxruntime.InferenceSession = OnGpu
device._gpus = lambda: 1
encoder = Encoder(sys.argv[1], device=sys.argv[2], precision="fp32")
before = encoder.encode_documents(["a"])

def refused(encoder):
    try:
        encoder.encode_documents(["b"])
    except DeviceError as error:
        return "forked" in str(error) and "spawn" in str(error)

def child():
    cpu = Encoder(sys.argv[1], device="cpu")
    assert refused(encoder)
    assert refused(Encoder(sys.argv[1]))
    assert abs(cpu.encode_documents(["a"]) - before).max() < 1e-5

pid = os.fork()
if pid == 0:
    child()
    if os.fork() == 0:
        child()
        sys.exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), encoder.encode_documents(["c"]).shape)
"""


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_is_refused_after_a_fork(folder: Path, device: str) -> None:
    """By name, never the CPU in its place; the parent goes on."""
    assert python("-c", CUDA, str(folder), device).split(maxsplit=1)[0] == "0"


REMOTE = """
import os, sys
from pgembed.encoders import Encoder

remote = Encoder.remote(sys.argv[1], fingerprint="f", dimensions=2)

def sockets():
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.islink(link))

remote.encode_documents(["parent"])
pid = os.fork()
if pid == 0:
    print("inherited", sockets(), flush=True)
    remote.encode_documents(["child"])
    sys.exit(0)
os.waitpid(pid, 0)
remote.encode_documents(["parent"])
"""


def test_a_child_has_connections_of_its_own() -> None:
    """And closes those of its parent, which would otherwise stay open as long as the child lives."""
    seen: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((body["input"][0], self.client_address[1]))
            self.answer({"data": [{"index": 0, "embedding": [1.0, 0.0]}]})

        def answer(self, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        printed = python("-c", REMOTE, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    first, child, again = seen
    assert first == again
    assert child[0] == "child"
    assert child[1] != first[1]
    assert printed == "inherited 0\n"


def test_where_libc_cannot_do_it_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forks, "_libc", object())
    monkeypatch.setattr(forks, "_inherited", frozenset())
    monkeypatch.setattr(forks, "_holders", set())
    monkeypatch.setitem(sys.modules, "onnxruntime", object())
    forks._after_fork()
    assert "event=fork reason='ONNX Runtime was loaded before this process was forked" in caplog.text
