"""What batching across requests gains: many clients of ``pgembed serve``, each with single short texts.

Usage::

    python benchmarks/serve.py [--encoder NAME_OR_PATH] [--clients 64] [--seconds 8]

The same server runs twice, in a process of its own: once as it is, once with batches of one request. Clients
are threads of another process with a connection each; on a small machine they take their share of the cores.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time

import corpus

from pgembed.encoders import Encoder, packaged
from pgembed.encoders.serving import Limits, Server


def serve(encoder: str, batch: int) -> None:
    """Serve until the process is ended; prints the port."""
    opened = Encoder(encoder)
    opened.open()
    server = Server([opened], port=0, limits=Limits(batch=batch))
    print(server.server_port, flush=True)
    server.serve_forever()


def measured(encoder: str, batch: int, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and the latency of each."""
    command = [sys.executable, "-W", "ignore", __file__, "--serve", encoder, str(batch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        texts, latencies = itertools.cycle(corpus.short(2000)), []
        stop = time.perf_counter() + seconds + 1

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            while (start := time.perf_counter()) < stop:
                body = json.dumps({"input": next(texts), "encoding_format": "base64"})
                connection.request("POST", "/v1/embeddings", body)
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
                if start > stop - seconds:  # the first second warms up
                    latencies.append(time.perf_counter() - start)
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(latencies) / seconds, latencies
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    encoder = options.encoder or str(packaged("all-MiniLM-L6-v2"))
    rates: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, batch in (("one by one", 1), ("batched", 256)):
            rate, times = measured(encoder, batch, options.clients, options.seconds)
            rates.setdefault(name, []).append(rate)
            latencies.setdefault(name, []).extend(times)
    print(f"{options.clients} clients, single short texts, medians of {options.rounds} runs")
    print(f"{'':12}{'requests/s':>12}{'median':>11}{'p95':>11}")
    for name, values in rates.items():
        median, p95 = statistics.median(latencies[name]), statistics.quantiles(latencies[name], n=20)[-1]
        print(f"{name:12}{statistics.median(values):12.0f}{1000 * median:8.0f} ms{1000 * p95:8.0f} ms")
    print(f"ratio {statistics.median(rates['batched']) / statistics.median(rates['one by one']):.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
