"""Pulling a model, against a server on the loopback that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from pgembed.encoders import Encoder, Reranker
from pgembed.encoders.sources.hub import pull
from pgembed.exc import DownloadError, EncoderFilesError, EncoderOptionError, UnsupportedArchitectureError
from tests.unit.encoders.models import PAIRS, RERANKERS

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests" / "golden" / "models" / "distilbert"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One model at one commit; ``requests`` records what was asked for, ``lies`` what is not as announced.

    ``sha``, ``headers`` and ``sizes`` are what it says of the commit, with each file, and of their sizes;
    ``broken`` are files whose transfer ends half-way.
    """

    def __init__(self, model: Path = MODEL) -> None:
        self.files = {
            path.relative_to(model).as_posix(): path.read_bytes()
            for path in model.rglob("*")
            if path.is_file()
        }
        self.files["pytorch_model.bin"] = self.files["README.md"] = b"not needed"
        self.requests: list[str] = []
        self.lies: set[str] = set()
        self.broken: set[str] = set()
        self.sha = COMMIT
        self.headers: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = urlsplit(request.path).path
        content, status, headers = b"", 404, {"X-Error-Code": "RepoNotFound"}
        broken = path.partition(f"{COMMIT}/")[2] in self.broken
        if path.startswith("/api/models/org/tiny/revision/"):
            if path.rpartition("/")[2] in ("main", COMMIT):
                content, status, headers = (
                    json.dumps(self.listing()).encode(),
                    200,
                    {"Content-Type": "application/json"},
                )
            else:
                headers = {"X-Error-Code": "RevisionNotFound"}
        elif path.startswith("/org/tiny/resolve/"):
            name = path.split("/", 5)[5]
            if name in self.files:
                content = self.files[name]
                etag = hashlib.sha256(content).hexdigest()
                status, headers = 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT} | self.headers
                if body:
                    self.requests.append(name)
                    if name in self.lies:
                        content = bytes(len(content))
            else:
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        request.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(content[: len(content) // 2] if broken else content)

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, object] = {
                "rfilename": name,
                "size": self.sizes.get(name, len(content)),
                "blobId": "0" * 40,
            }
            if name.endswith(".safetensors"):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 1,
                }
            siblings.append(entry)
        return {
            "id": "org/tiny",
            "modelId": "org/tiny",
            "sha": self.sha,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub()) as hub:
        yield hub


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()


@pytest.mark.parametrize(
    ("name", "ready"), [("bert", False), ("bert", True), ("modernbert-mean", False), ("bert-nli", False)]
)
def test_pull_of_a_classifier(name: str, ready: bool, tmp_path: Path, scoring: Callable[[str], Path]) -> None:
    """A cross-encoder becomes a reranker, from its weights or, without them, from its ONNX file."""
    with running(Hub(RERANKERS / name)) as hub:
        if ready:
            del hub.files["model.safetensors"]
            hub.files["onnx/model.onnx"] = (RERANKERS / "ready.onnx").read_bytes()
        folder = pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path / "encoders")
        with Reranker(folder) as reranker, Reranker(scoring(name)) as exported:
            assert reranker.spec.source == f"org/tiny@{COMMIT}"
            assert (reranker.labels, reranker.spec.activation) == (exported.labels, exported.spec.activation)
            assert np.allclose(reranker.predict(PAIRS), exported.predict(PAIRS), atol=1e-4)
        assert {"README.md", "pytorch_model.bin", "golden.npz"}.isdisjoint(hub.requests)
        with pytest.raises(EncoderOptionError, match=r"open it with Reranker\("):
            Encoder(folder)


def test_pull(hub: Hub, tmp_path: Path) -> None:
    folder = pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path / "encoders")
    assert folder == tmp_path / "encoders" / "tiny"
    with Encoder(folder) as encoder:
        assert encoder.spec.source == f"org/tiny@{COMMIT}"
        assert encoder.encode_documents(["a text"]).shape == (1, 12)
    assert {"README.md", "pytorch_model.bin", "golden.npz"}.isdisjoint(hub.requests)  # only what is needed
    assert len(hub.requests) == len(set(hub.requests))
    hub.requests.clear()
    assert (
        pull(
            "org/tiny",
            revision=COMMIT,
            endpoint=hub.url,
            cache=tmp_path / "cache",
            into=tmp_path / "encoders",
        )
        == folder
    )
    assert hub.requests == []


def test_ready_file_of_an_architecture_that_is_not_built(hub: Hub, tmp_path: Path) -> None:
    """The weights, which are of no use, stay where they are."""
    config = json.loads(hub.files["config.json"]) | {"model_type": "nomic_bert"}
    hub.files["config.json"] = json.dumps(config).encode()
    hub.files["modules.json"] = json.dumps(json.loads(hub.files["modules.json"])[:2]).encode()
    options = {"endpoint": hub.url, "into": tmp_path / "encoders"}
    with pytest.raises(UnsupportedArchitectureError, match="nomic_bert"):
        pull("org/tiny", cache=tmp_path / "first", **options)
    hub.requests.clear()
    hub.files["onnx/model.onnx"] = (MODEL.parents[1] / "ready_bert.onnx").read_bytes()
    encoder = Encoder(pull("org/tiny", cache=tmp_path / "second", **options))
    assert encoder.encode_documents(["a text"]).shape == (1, 48)  # two modes of pooling
    assert "onnx/model.onnx" in hub.requests
    assert "model.safetensors" not in hub.requests


@pytest.mark.parametrize("content", [b"[", b"{}", b"[1]", b"[]", b"null"])
def test_damaged_list_of_modules(hub: Hub, tmp_path: Path, content: bytes) -> None:
    hub.files["modules.json"] = content
    with pytest.raises(EncoderFilesError, match="no list of modules"):
        pull("org/tiny", endpoint=hub.url, cache=tmp_path, into=tmp_path)


def test_offline(hub: Hub, tmp_path: Path) -> None:
    options = {"cache": tmp_path / "cache", "into": tmp_path / "encoders"}
    with pytest.raises(DownloadError, match="not in the cache"):
        pull("org/tiny", offline=True, **options)
    pulled = Encoder(pull("org/tiny", endpoint=hub.url, **options))
    hub.requests.clear()
    again = Encoder(pull("org/tiny", offline=True, endpoint="http://127.0.0.1:9", name="again", **options))
    assert (again.fingerprint, again.spec.source) == (pulled.fingerprint, pulled.spec.source)
    assert hub.requests == []


def test_damaged_on_the_way(hub: Hub, tmp_path: Path) -> None:
    hub.lies.add("model.safetensors")
    with pytest.raises(DownloadError, match=r"model\.safetensors does not have the SHA-256"):
        pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path / "encoders")
    assert not (tmp_path / "encoders").exists()
    hub.lies.clear()
    assert pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path / "encoders").is_dir()


@pytest.mark.parametrize(
    ("model", "revision", "reason"),
    [("org/other", "main", "no such model"), ("org/tiny", "v9", "no revision 'v9'")],
)
def test_what_is_not_there(hub: Hub, tmp_path: Path, model: str, revision: str, reason: str) -> None:
    with pytest.raises(DownloadError, match=reason):
        pull(model, revision=revision, endpoint=hub.url, cache=tmp_path, into=tmp_path)


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("model", ["a b c", "a/b/c", "org/ti..ny", ""])
def test_what_is_no_name(tmp_path: Path, model: str, offline: bool) -> None:
    with pytest.raises(DownloadError) as refused:
        pull(model, offline=offline, endpoint="http://127.0.0.1:9", cache=tmp_path, into=tmp_path)
    assert str(refused.value) == (
        f"cannot fetch {model!r}: that is not a name. Check the name: it is OWNER/MODEL, as on the hub"
    )


def test_without_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="copy the encoder's folder"):
        pull("org/tiny", endpoint="http://127.0.0.1:9", cache=tmp_path, into=tmp_path)


# --- hubs that answer something strange ---------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def refused(hub: Hub, tmp_path: Path, match: str) -> None:
    """Nothing becomes an encoder, nothing is written outside of the cache, and a retry succeeds."""
    options = {"endpoint": hub.url, "cache": tmp_path / "cache", "into": tmp_path / "encoders"}
    with pytest.raises((DownloadError, EncoderFilesError), match=match):
        pull("org/tiny", **options)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "encoders"}
    assert not list(tmp_path.glob("encoders/*"))


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "a\\b", "C:x", "x" * 300, 3, None])
def test_modules_elsewhere(hub: Hub, tmp_path: Path, place: object) -> None:
    modules = json.loads(hub.files["modules.json"])
    modules[1]["path"] = place
    hub.files["modules.json"] = json.dumps(modules).encode()
    refused(hub, tmp_path, "the name|no list of modules")
    assert set(hub.requests) <= {"modules.json", "config_sentence_transformers.json"}


@pytest.mark.parametrize("shard", ["../../../x", "/etc/passwd", "a\\b", 5])
def test_shards_elsewhere(hub: Hub, tmp_path: Path, shard: object) -> None:
    del hub.files["model.safetensors"]
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"x": shard}}).encode()
    refused(hub, tmp_path, "the name|weight_map.x = 5")


@pytest.mark.parametrize("content", [b"[", b"[]", b"{}", b'{"weight_map": 3}', b"[" * 100_000])
def test_a_damaged_index(hub: Hub, tmp_path: Path, content: bytes) -> None:
    del hub.files["model.safetensors"]
    hub.files["model.safetensors.index.json"] = content
    refused(hub, tmp_path, r"index\.json: found")


@pytest.mark.parametrize("sha", ["../../elsewhere", "", "main", "x" * 300, None])
def test_a_malformed_commit(hub: Hub, tmp_path: Path, sha: str) -> None:
    hub.sha = sha
    refused(hub, tmp_path, "the server names the commit")


@pytest.mark.parametrize("key", ["X-Repo-Commit", "ETag"])
def test_headers_that_lead_elsewhere(hub: Hub, tmp_path: Path, key: str) -> None:
    hub.headers[key] = '"../../../../elsewhere"'
    refused(hub, tmp_path, "cannot fetch 'org/tiny'")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "found"),
    [(POINTER, "a pointer of Git LFS"), (b"<!DOCTYPE html><p>Busy", "a web page"), (b"", "an empty file")],
)
def test_something_else_in_a_file_s_place(
    hub: Hub, tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    intact, hub.files[name] = hub.files[name], content
    refused(hub, tmp_path, f"{name} is {found}")
    hub.files[name] = intact  # it was not kept in the cache
    assert pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path).is_dir()


def test_a_file_of_another_size(hub: Hub, tmp_path: Path) -> None:
    hub.sizes["tokenizer.json"] = 17
    refused(hub, tmp_path, r"tokenizer\.json has \d+ bytes, the server announced 17")


def test_only_older_weights(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    refused(hub, tmp_path, r"no model\.safetensors")


def test_a_transfer_that_breaks_off(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries five times
    hub.broken.add("model.safetensors")
    refused(hub, tmp_path, "cannot fetch")
    hub.broken.clear()
    assert pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path).is_dir()


def test_two_at_once(hub: Hub, tmp_path: Path) -> None:
    def pulled(_: int) -> Path:
        return pull("org/tiny", endpoint=hub.url, cache=tmp_path / "cache", into=tmp_path / "encoders")

    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(pulled, range(2)))
    assert folders == {tmp_path / "encoders" / "tiny"}
    assert [path.name for path in (tmp_path / "encoders").iterdir()] == ["tiny"]
    assert Encoder(folders.pop()).encode_documents(["a text"]).shape == (1, 12)


@pytest.mark.parametrize("name", ["../tiny", "a/b", "", "..", "x" * 300, "a\n"])
def test_names_of_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(EncoderOptionError, match="name is"):
        pull("org/tiny", endpoint="http://127.0.0.1:9", name=name, cache=tmp_path, into=tmp_path)


def test_without_the_package_that_writes_graphs(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pgembed.encoders.sources.hub import pull\n"
        "from pgembed.exc import MissingExtraError\n"
        "try: pull('org/tiny')\n"
        "except MissingExtraError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pip install" in run.stdout, run.stderr
