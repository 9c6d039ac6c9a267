"""Where encoders lie: by path, or by name in the folders of ``PGEMBED_ENCODERS``.

Never relative to the folder that the process happens to have been started in.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from pgembed.encoders.spec import SPEC_FILE
from pgembed.exc import EncoderNotFoundError

VARIABLE = "PGEMBED_ENCODERS"


def folders() -> tuple[Path, ...]:
    """The folders that hold encoders by name: those of ``PGEMBED_ENCODERS``, then the user's data folder."""
    listed = (part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part.strip())
    return *(Path(part).expanduser().absolute() for part in listed), default_folder()


def default_folder() -> Path:
    """The folder of encoders that belongs to the user."""
    return platformdirs.user_data_path("pgembed") / "encoders"


def as_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The absolute path that ``name_or_path`` means, or ``None`` when it is a name.

    A string is a path when it holds a path separator.
    """
    if isinstance(name_or_path, str):
        separators = {os.sep, "/"} | ({os.altsep} if os.altsep else set())
        if not any(separator in name_or_path for separator in separators):
            return None
    return Path(name_or_path).expanduser().absolute()


def find(name: str) -> Path:
    """The folder of the encoder called ``name``.

    :raises EncoderNotFoundError: no folder on the list has it.
    """
    searched = folders()
    for folder in searched:
        if name and (folder / name / SPEC_FILE).is_file():
            return folder / name
    hint = (
        f"Export or copy it there, set {VARIABLE} to the folder that holds it, or give a path "
        f"(./{name} is one, {name} is a name)"
    )
    raise EncoderNotFoundError(name, searched, hint=hint)


def spec_file(path: Path, *, given: str = "") -> Path:
    """The spec at ``path``: the file itself, or the one inside the folder.

    :param given: what the user wrote, which may have been meant as a model of the hub.
    :raises EncoderNotFoundError: there is neither.
    """
    if path.is_file():
        return path
    if (path / SPEC_FILE).is_file():
        return path / SPEC_FILE
    hint = f"A folder needs the file {SPEC_FILE} in it: `pgembed export MODEL_DIR OUT_DIR` writes one"
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", given) and not path.exists():
        name = given.partition("/")[2]
        hint = (
            f"If {given} is a model of the Hugging Face hub: `pgembed pull {given}`, then Encoder({name!r})"
        )
    raise EncoderNotFoundError(str(path), [path], hint=hint)
