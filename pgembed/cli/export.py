"""``pgembed export``: a model's folder to an encoder's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgembed.cli.options import say


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("export")(export)


def export(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder of a sentence-transformers model with safetensors.")
    ],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write; an encoder that is there is replaced.")],
    name: Annotated[str | None, typer.Option(help="Name of the encoder; by default that of OUT_DIR.")] = None,
) -> None:
    """Make an ONNX encoder from a model's weights; needs no torch."""
    from pgembed.encoders import EncoderSpec, export_onnx
    from pgembed.encoders.spec import SPEC_FILE

    folder = export_onnx(model_dir, out_dir, name=name, source=str(model_dir.name))
    spec = EncoderSpec.load(folder / SPEC_FILE)
    say(
        f"{folder}: {spec.name}, {spec.dimensions} dimensions, up to {spec.max_tokens} tokens, "
        f"fingerprint {spec.fingerprint}"
    )
