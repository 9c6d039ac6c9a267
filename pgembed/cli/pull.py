"""``pgembed pull``: a model from the Hugging Face hub to an installed encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgembed.cli.options import say


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("pull")(pull)


def pull(
    model_id: Annotated[str, typer.Argument(help="Such as BAAI/bge-small-en-v1.5.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or (to pin it) commit.")] = "main",
    name: Annotated[
        str | None, typer.Option(help="Name of the encoder; by default that of the model.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Folder of encoders; by default that of PGEMBED_ENCODERS.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache, ask no server.")] = False,
) -> None:
    """Fetch a model and make an encoder of it."""
    from pgembed.encoders import EncoderSpec
    from pgembed.encoders.sources.hub import pull as fetch
    from pgembed.encoders.spec import SPEC_FILE

    folder = fetch(model_id, revision=revision, name=name, into=into, offline=offline)
    spec = EncoderSpec.load(folder / SPEC_FILE)
    say(f"{folder}: {spec.source}, {spec.dimensions} dimensions, fingerprint {spec.fingerprint}")
