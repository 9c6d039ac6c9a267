"""What batching across requests gains: many clients of ``pgembed serve``, each with single short texts.

Usage::

    python benchmarks/serve.py [--encoder NAME_OR_PATH] [--precision fp32 int8] [--clients 64] [--seconds 8]

The same server runs twice, in a process of its own: as it is, and with batches of one request, each its own
forward pass. The clients, connections of one other process, send search queries of about 4 to 12 tokens, each
as soon as the last answer is there; on a small machine they take their share of the cores. Beside it stand
the processor time that the server takes for a request, which other work on the machine disturbs less, and
what the machine allows: the same texts in this process without any server, one by one and in batches as large
as there are clients.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import corpus

from pgembed.encoders import Encoder, packaged
from pgembed.encoders.serving import Limits, Server


def queries(count: int) -> list[str]:
    """Different search queries of two to six words."""
    words = itertools.cycle((2, 3, 4, 5, 6, 3, 4))
    return list(dict.fromkeys(" ".join(text.split()[: next(words)]) for text in corpus.short(count)))


def serve(encoder: str, precision: str, batch: int) -> None:
    """Serve until the process is ended; prints the port."""
    opened = Encoder(encoder, precision=precision, query_cache=0)
    opened.open()
    server = Server([opened], port=0, limits=Limits(batch=batch))
    print(server.server_port, flush=True)
    server.serve_forever()


def load(port: int, clients: int, seconds: float) -> list[float]:
    """Latencies of the requests of so many connections, in seconds; the first second warms up."""
    texts = itertools.cycle(queries(4000))
    selector = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    received: dict[socket.socket, bytes] = {}

    def send(client: socket.socket) -> None:
        body = json.dumps({"input": next(texts), "encoding_format": "base64"}).encode()
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        sent[client], received[client] = time.perf_counter(), b""
        client.sendall(head + body)

    for _ in range(clients):
        client = socket.create_connection(("127.0.0.1", port))
        selector.register(client, selectors.EVENT_READ)
        send(client)
    latencies = []
    start = time.perf_counter() + 1
    while (now := time.perf_counter()) < start + seconds:
        for key, _ in selector.select(1):
            client = key.fileobj  # type: ignore[assignment]
            received[client] += client.recv(65536)
            head, blank, body = received[client].partition(b"\r\n\r\n")
            if blank and len(body) == int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]):
                assert head.startswith(b"HTTP/1.1 200"), body
                if now > start:
                    latencies.append(time.perf_counter() - sent[client])
                send(client)
    for client in sent:
        client.close()
    return latencies


def processor_seconds(process: int) -> float:
    """What a process has used so far, all threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """A run against one server: the latency of each request, and the processor time of the server."""

    latencies: list[float]
    processor: float


def measured(encoder: str, precision: str, batch: int, clients: int, seconds: float) -> Run:
    """A run against a server of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--serve", encoder, precision, str(batch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        before = processor_seconds(process.pid)
        latencies = load(port, clients, seconds)
        # the second that warms up is in it, with its requests
        share = seconds / (seconds + 1)
        return Run(latencies, (processor_seconds(process.pid) - before) * share)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def without_server(encoder: Encoder, batch: int, seconds: float) -> float:
    """Texts a second, so many at a time."""
    texts = itertools.cycle(queries(4000))
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        encoder.encode_documents(itertools.islice(texts, batch))
        count += batch
    return count / (time.perf_counter() - start)


def compared(encoder: str, precision: str, clients: int, seconds: float, rounds: int) -> Iterator[str]:
    """Lines of the table for one precision."""
    batches = {"one by one": 1, "batched": 256}
    runs: dict[str, list[Run]] = {name: [] for name in batches}
    ceilings: dict[str, list[float]] = {name: [] for name in batches}
    with Encoder(encoder, precision=precision) as opened:
        opened.open()
        for _ in range(rounds):
            for name, batch in batches.items():
                runs[name].append(measured(encoder, precision, batch, clients, seconds))
            for name, batch in batches.items():
                ceilings[name].append(without_server(opened, min(batch, clients), seconds / 4))
    rates, costs = {}, {}
    for name, several in runs.items():
        every = list(itertools.chain(*(run.latencies for run in several)))
        p95 = statistics.quantiles(every, n=20)[-1]
        rates[name] = statistics.median(len(run.latencies) for run in several) / seconds
        costs[name] = statistics.median(run.processor / len(run.latencies) for run in several)
        yield (
            f"{precision:6}{name:12}{rates[name]:11.0f}{1000 * statistics.median(every):9.0f} ms"
            f"{1000 * p95:7.0f} ms{1000 * costs[name]:11.2f} ms{statistics.median(ceilings[name]):16.0f}"
        )
    ratio = rates["batched"] / rates["one by one"]
    cost = costs["one by one"] / costs["batched"]
    ceiling = statistics.median(ceilings["batched"]) / statistics.median(ceilings["one by one"])
    yield f"{precision:6}ratio {ratio:17.2f}{cost:36.2f}{ceiling:16.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder")
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    encoder = options.encoder or str(packaged("all-MiniLM-L6-v2"))
    print(f"{options.clients} clients, single short texts, medians of {options.rounds} interleaved runs")
    print(f"{'':18}{'requests/s':>11}{'median':>12}{'p95':>10}{'processor':>14}{'without server':>16}")
    for precision in options.precision:
        for line in compared(encoder, precision, options.clients, options.seconds, options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
