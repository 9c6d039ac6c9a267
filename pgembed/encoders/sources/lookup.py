"""Where encoders lie: by path, or by name in the folders of ``PGEMBED_ENCODERS``.

Never relative to the folder that the process happens to have been started in.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import platformdirs

from pgembed.encoders.files import is_name
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

    :raises EncoderNotFoundError: it begins with the home of a user that there is not.
    """
    if isinstance(name_or_path, str):
        separators = {os.sep, "/"} | ({os.altsep} if os.altsep else set())
        if not any(separator in name_or_path for separator in separators):
            return None
    try:
        return Path(name_or_path).expanduser().absolute()
    except RuntimeError as error:
        raise EncoderNotFoundError(str(name_or_path), (), hint=f"{error}") from error


def find(name: str) -> Path:
    """The folder of the encoder called ``name``.

    :raises EncoderNotFoundError: no folder on the list has it, or it is not a name.
    """
    searched = folders()
    if not is_name(name):
        hint = "That is not the name of an encoder: names have no separators and no invisible characters"
        raise EncoderNotFoundError(name, searched, hint=hint)
    for folder in searched:
        if (folder / name / SPEC_FILE).is_file():
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
    with suppress(OSError, ValueError):  # of names that no file system takes; later Pythons just say no
        if path.is_file():
            return path
        if (path / SPEC_FILE).is_file():
            return path / SPEC_FILE
    hint = f"A folder needs the file {SPEC_FILE} in it: `pgembed export MODEL_DIR OUT_DIR` writes one"
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", given) and not os.path.exists(path):
        name = given.partition("/")[2]
        hint = (
            f"If {given} is a model of the Hugging Face hub: `pgembed pull {given}`, then Encoder({name!r})"
        )
    raise EncoderNotFoundError(str(path), [path], hint=hint)
