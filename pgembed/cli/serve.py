"""``pgembed serve``: encoders for other processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from pgembed.exc import EncoderServerError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("serve")(serve)


def serve(
    encoder: Annotated[list[str], typer.Option(help="Name or folder; may be given several times.")],
    host: Annotated[str, typer.Option(help="Address; other than the loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port, 0 for any free one.")] = 8817,
    token: Annotated[
        str | None, typer.Option(envvar="PGEMBED_SERVE_TOKEN", help="What clients must send.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or int8.")] = "auto",
) -> None:
    """Serve encoders over HTTP, in the shape of OpenAI's embeddings API."""
    from pgembed.encoders import Encoder
    from pgembed.encoders.serving import Server

    paths = [Path(name) if Path(name).exists() else name for name in encoder]
    encoders = [Encoder(path, device=device, precision=precision) for path in paths]
    try:
        server = Server(encoders, host=host, port=port, token=token)
    except OSError as error:
        reason = f"cannot listen there: {error.strerror or error}"
        raise EncoderServerError(f"{host}:{port}", reason, fix="Choose another --port") from error
    for opened in encoders:
        opened.open()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.shutdown())
    names = ", ".join(f"{opened.name} ({opened.fingerprint})" for opened in encoders)
    typer.echo(f"serving {names} on http://{host}:{server.server_port}")
    server.serve_forever()
