"""``pgembed serve``: encoders for other processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pgembed.cli.options import say
from pgembed.encoders.serving.limits import Limits
from pgembed.exc import EncoderServerError

_MIB = 2**20
_PANEL = "Limits (503 and 408 say that one was reached)"


def _limit(help: str, least: float = 1) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(min=least, help=help, rich_help_panel=_PANEL)
    return option


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("serve")(serve)


def _place(name: str) -> str | Path:
    return Path(name) if Path(name).exists() else name


def serve(
    encoder: Annotated[
        list[str] | None, typer.Option(help="Name or folder of an encoder; may be given several times.")
    ] = None,
    reranker: Annotated[
        list[str] | None, typer.Option(help="Name or folder of a cross-encoder, for /rerank; likewise.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; other than the loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port, 0 for any free one.")] = 8817,
    token: Annotated[
        str | None, typer.Option(envvar="PGEMBED_SERVE_TOKEN", help="What clients must send.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or int8.")] = "auto",
    texts: Annotated[int, _limit("Texts of a request.")] = Limits.texts,
    body_mib: Annotated[int, _limit("MiB of a request.")] = Limits.body // _MIB,
    waiting: Annotated[int, _limit("Requests that wait for an encoder.")] = Limits.waiting,
    wait_seconds: Annotated[float, _limit("How long a request waits for its turn.", 0.1)] = Limits.seconds,
    pass_seconds: Annotated[
        float, _limit("How long one pass of an encoder should take; larger requests are cut.", 0.01)
    ] = Limits.pass_seconds,
    connections: Annotated[int, _limit("Clients at once.")] = Limits.connections,
    arriving_mib: Annotated[int, _limit("MiB of all requests that have not arrived whole.")] = Limits.arriving
    // _MIB,
    held_mib: Annotated[int, _limit("MiB of all requests that wait, with their answers.")] = Limits.held
    // _MIB,
    idle_seconds: Annotated[float, _limit("How long a connection may be idle.", 0.1)] = Limits.idle,
    header_seconds: Annotated[
        float, _limit("In which all headers must arrive.", 0.1)
    ] = Limits.header_seconds,
    body_seconds: Annotated[float, _limit("In which a whole body must arrive.", 0.1)] = Limits.body_seconds,
    answer_seconds: Annotated[
        float, _limit("In which a client must take its answer.", 0.1)
    ] = Limits.answer_seconds,
    stop_seconds: Annotated[
        float, _limit("In which SIGTERM lets what has arrived be answered.", 0.1)
    ] = Limits.stop_seconds,
) -> None:
    """Serve encoders over HTTP in the shape of OpenAI's embeddings API, rerankers in that of TEI and Cohere.

    SIGTERM and SIGINT let it answer what has arrived; a second one ends it at once.
    """
    from pgembed.encoders import Encoder, Reranker
    from pgembed.encoders.serving import Server

    limits = Limits(
        texts=texts,
        body=body_mib * _MIB,
        waiting=waiting,
        seconds=wait_seconds,
        pass_seconds=pass_seconds,
        connections=connections,
        arriving=arriving_mib * _MIB,
        held=held_mib * _MIB,
        idle=idle_seconds,
        header_seconds=header_seconds,
        body_seconds=body_seconds,
        answer_seconds=answer_seconds,
        stop_seconds=stop_seconds,
    )
    if not encoder and not reranker:
        raise typer.BadParameter("expected --encoder NAME or --reranker NAME")
    encoders = [Encoder(_place(name), device=device, precision=precision) for name in encoder or ()]
    rerankers = [Reranker(_place(name), device=device, precision=precision) for name in reranker or ()]
    models: list[Encoder | Reranker] = [*encoders, *rerankers]
    try:
        server = Server(encoders, rerankers=rerankers, host=host, port=port, token=token, limits=limits)
    except OSError as error:
        reason = f"cannot listen there: {error.strerror or error}"
        raise EncoderServerError(f"{host}:{port}", reason, fix="Choose another --port") from error
    for opened in models:
        opened.open()

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        server.shutdown()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    names = ", ".join(f"{opened.name} ({opened.fingerprint})" for opened in models)
    say(f"serving {names} on http://{host}:{server.server_port}")
    if not server.serve_forever():
        sys.stdout.flush()
        os._exit(0)
