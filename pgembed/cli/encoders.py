"""``pgembed export``, ``pull`` and ``encoders``: making, fetching and showing encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pgembed.cli.options import print_table, say
from pgembed.encoders import EncoderSpec
from pgembed.encoders.sources import local
from pgembed.encoders.spec import SPEC_FILE
from pgembed.exc import EncoderFilesError


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(no_args_is_help=True, help="Show installed encoders, and what decides their vectors.")
    group.command("show")(show)
    group.command("list")(list_)
    app.command("export")(export)
    app.command("pull")(pull)
    app.add_typer(group, name="encoders")


def show(
    encoder: Annotated[str, typer.Argument(help="Folder, spec file, or the name of an installed encoder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the spec as JSON.")] = False,
) -> None:
    """Print what decides an encoder's vectors, and its fingerprint."""
    path = Path(encoder) if Path(encoder).exists() else local.as_path(encoder)
    file = local.spec_file(path.absolute() if path else local.find(encoder))
    spec = EncoderSpec.load(file)
    if as_json:
        say(json.dumps(spec.document(), indent=2, ensure_ascii=False))
        return
    table = Table(title=f"{spec.name} ({file.parent})", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _rows(spec):
        table.add_row(name, value)
    print_table(table)


def _rows(spec: EncoderSpec) -> list[tuple[str, str]]:
    kept = f"{spec.dimensions} of {spec.width}" if spec.dimensions < spec.width else str(spec.dimensions)
    last = [("weights (SHA-256)", spec.weights), ("tokenizer (SHA-256)", spec.tokenizer)]
    steps = [f"pooling: {' + '.join(spec.pooling)}", *spec.steps]
    first = [
        ("fingerprint", spec.fingerprint),
        ("architecture", spec.architecture),
        ("source", spec.source or "not recorded"),
        ("texts are cut at", f"{spec.max_tokens} tokens (the model's limit is {spec.token_limit})"),
    ]
    if spec.labels:
        return [
            *first,
            ("labels of pairs", ", ".join(spec.labels)),
            ("activation", spec.activation),
            *last,
        ]
    return [
        *first,
        ("dimensions", kept),
        ("steps", ", ".join(steps)),
        ("prompt of documents", repr(spec.document_prompt)),
        ("prompt of queries", repr(spec.query_prompt)),
        ("prompts are pooled", "yes" if spec.include_prompt else "no"),
        ("texts are lowercased", "yes" if spec.lowercase else "no, or by the tokenizer"),
        *last,
    ]


def list_() -> None:
    """List the encoders in the folders of PGEMBED_ENCODERS and the user's data folder."""
    table = Table("name", "gives", "tokens")
    for heading in ("fingerprint", "folder"):
        table.add_column(heading, overflow="fold")
    for folder in local.folders():
        for file in sorted(folder.glob(f"*/{SPEC_FILE}")):
            try:
                spec = EncoderSpec.load(file)
            except EncoderFilesError as error:
                table.add_row(file.parent.name, "", "", f"unreadable: found {error.found}", str(folder))
                continue
            gives = f"{spec.dimensions} dimensions"
            if spec.labels:
                gives = "scores of pairs" + (f", {len(spec.labels)} labels" if len(spec.labels) > 1 else "")
            table.add_row(file.parent.name, gives, str(spec.max_tokens), spec.fingerprint, str(folder))
    print_table(table)


def export(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder of a sentence-transformers model with safetensors.")
    ],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write; an encoder that is there is replaced.")],
    name: Annotated[str | None, typer.Option(help="Name of the encoder; by default that of OUT_DIR.")] = None,
) -> None:
    """Make an ONNX encoder from a model's weights; needs no torch."""
    from pgembed.encoders import export_onnx

    folder = export_onnx(model_dir, out_dir, name=name, source=str(model_dir.name))
    spec = EncoderSpec.load(folder / SPEC_FILE)
    say(
        f"{folder}: {spec.name}, {spec.dimensions} dimensions, up to {spec.max_tokens} tokens, "
        f"fingerprint {spec.fingerprint}"
    )


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
    from pgembed.encoders.sources.hub import pull as fetch

    folder = fetch(model_id, revision=revision, name=name, into=into, offline=offline)
    spec = EncoderSpec.load(folder / SPEC_FILE)
    say(f"{folder}: {spec.source}, {spec.dimensions} dimensions, fingerprint {spec.fingerprint}")
