"""Models from the Hugging Face hub: the files that an encoder needs, of one revision, checked and exported.

Downloads go through ``huggingface_hub``, with its cache (``HF_HOME``), its token, its mirror
(``HF_ENDPOINT``) and its offline mode (``HF_HUB_OFFLINE``). Nothing else in pgembed ever downloads anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgembed.encoders.export import export_onnx, modules, require_onnx
from pgembed.encoders.export.modules import ROUTER_FILE
from pgembed.encoders.export.pipeline import SETTINGS_FILES
from pgembed.encoders.export.weights import INDEX_FILE, SINGLE_FILE, shards
from pgembed.encoders.files import Folder, file_digest, is_name, shown, stand_in
from pgembed.encoders.sources import local
from pgembed.encoders.text.tokenizer import TOKENIZER_FILE, WORDS_FILE
from pgembed.exc import DownloadError, EncoderOptionError

_SETTINGS = (
    "config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    *SETTINGS_FILES,
    WORDS_FILE,
    "wordembedding_config.json",
)


def pull(
    model_id: str,
    *,
    revision: str = "main",
    name: str | None = None,
    into: Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """Fetch a model and make an encoder of it.

    Of a repository only the weights as safetensors (or the ready ONNX file, where there are none or no family
    builds the model), the tokenizer and the configuration are fetched. What is in the cache is not fetched
    again.

    :param model_id: such as ``"BAAI/bge-small-en-v1.5"``.
    :param revision: a branch, a tag, or (to pin it) the hash of a commit.
    :param name: the encoder's name; by default the part of ``model_id`` after the slash.
    :param into: folder of encoders; by default the first of ``PGEMBED_ENCODERS`` or the user's data folder.
    :param offline: use what is in the cache, ask no server.
    :param endpoint: URL of a mirror.
    :param cache: folder of the cache.
    :returns: the encoder's folder.
    :raises EncoderOptionError: it is not a name.
    :raises DownloadError: no network, no such model or revision, or files other than the server announced.
    :raises EncoderFilesError: the model lacks files that an encoder needs.
    :raises MissingExtraError: ``onnx`` is not installed.
    """
    require_onnx()  # before anything is fetched
    if name is not None and not is_name(name):
        raise EncoderOptionError("name", name, needed="the name of a folder, without separators")
    repository = _Repository(model_id, revision, offline=offline, endpoint=endpoint, cache=cache)
    target = local.target(name or model_id.rpartition("/")[2], into)
    source = f"{model_id}@{repository.commit}"
    there = local.installed(target)
    if there is not None and there.source == source:
        return target
    return export_onnx(repository.fetch_needed(), target, name=target.name, source=source)


class _Repository:
    """The files of one revision of a model.

    :ivar commit: hash of the revision's commit.
    """

    def __init__(
        self, model_id: str, revision: str, *, offline: bool, endpoint: str | None, cache: Path | None
    ) -> None:
        import huggingface_hub  # takes half a second
        import huggingface_hub.constants
        import huggingface_hub.errors

        self._hub: Any = huggingface_hub
        self._id = model_id
        self._offline = offline or bool(huggingface_hub.constants.HF_HUB_OFFLINE)
        self._options = {"cache_dir": cache, "endpoint": endpoint, "local_files_only": self._offline}
        self._announced: dict[str, Any] = {}
        self._asked = self._revision = revision
        if self._offline:
            # The cache keeps each revision in a folder named after its commit.
            first = self._fetch("modules.json")
            self.commit = (first if first.name else self._fetch("config.json", required=True)).parent.name
            return
        try:
            info = huggingface_hub.HfApi(endpoint=endpoint).model_info(
                model_id, revision=revision, files_metadata=True
            )
        except Exception as error:
            raise self._error(error) from error
        if not re.fullmatch("[0-9a-f]{40,64}", str(info.sha)):  # it names a folder of the cache
            raise DownloadError(
                model_id, f"the server names the commit {shown(info.sha)}", fix="Set HF_ENDPOINT"
            )
        self.commit = self._revision = str(info.sha)
        self._announced = {file.rfilename: file for file in info.siblings or ()}

    def fetch_needed(self) -> Path:
        """Fetch what an encoder needs; returns the folder that holds it."""
        first = self._fetch("modules.json")
        self._fetch("config_sentence_transformers.json")
        folder = (first if first.name else self._fetch("config.json", required=True)).parent
        model = Folder(folder)
        for index, place in enumerate(self._places(model)):
            start = f"{place}/" if place else ""
            for name in _SETTINGS:
                self._fetch(start + name)
            built = index > 0 or self._is_built(model.file(f"{start}config.json"))
            if built or not self._fetch_ready(start):
                self._fetch_weights(model, start)
        if not self._offline and self._asked != self.commit:
            # Notes in the cache which commit the branch or tag means, so that it is found offline.
            self._hub.hf_hub_download(
                self._id, next(folder.glob("*.json")).name, revision=self._asked, **self._options
            )
        return folder

    def _places(self, model: Folder) -> list[str]:
        """The folders of the modules, those of a router's routes included, each once."""
        places = modules.places(model)
        router = modules.inside(places[0], ROUTER_FILE)
        if self._fetch(router).name:
            places += modules.places_of_routes(model, places[0])
        return list(dict.fromkeys(places))

    @staticmethod
    def _is_built(path: Path) -> bool:
        """Whether the model needs its weights: all do, except those that no family builds."""
        from pgembed.encoders.export.config import ModelConfig
        from pgembed.encoders.export.families import FAMILIES

        return ModelConfig.optional(path).get("model_type", "bert") in FAMILIES

    def _fetch_weights(self, model: Folder, start: str) -> None:
        if self._fetch(start + SINGLE_FILE).name:
            return
        index = self._fetch(start + INDEX_FILE)
        if index.name:
            for shard in shards(index):
                model.file(start + shard, stated_in=index)
                self._fetch(start + shard, required=True)
        else:
            self._fetch_ready(start)

    def _fetch_ready(self, start: str) -> bool:
        """Fetch the ready ONNX file; returns whether there is one."""
        for name in ("model.onnx", "onnx/model.onnx"):
            if self._fetch(start + name).name:
                for data in ("model.onnx_data", "model.onnx.data"):
                    self._fetch(start + name.replace("model.onnx", data))
                return True
        return False

    def _fetch(self, name: str, *, required: bool = False) -> Path:
        """The path of a file in the cache, fetched if necessary; empty if the model has no such file."""
        if self._announced and name not in self._announced and not required:
            return Path()
        try:
            path = Path(self._hub.hf_hub_download(self._id, name, revision=self._revision, **self._options))
        except Exception as error:
            missing = isinstance(error, self._absent)
            if missing and not required:
                return Path()
            raise self._error(error) from error
        reason = self._damage(name, path)
        if reason:
            path.resolve().unlink(missing_ok=True)
            raise DownloadError(self._id, f"{name} {reason}", fix="It was removed from the cache: try again")
        return path

    def _damage(self, name: str, path: Path) -> str:
        """What is wrong with a file that was fetched, in words; empty for an intact one."""
        announced = self._announced.get(name)
        lfs = announced.lfs if announced else None
        if lfs and file_digest(path) != lfs.sha256:
            return "does not have the SHA-256 that the server announced"
        size = announced.size if announced else None
        if size is not None and path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes, the server announced {size}"
        found = stand_in(path)
        return f"is {found}" if found else ""

    @property
    def _absent(self) -> tuple[type[Exception], ...]:
        """Errors that mean that there is no such file, which is fine for the optional ones."""
        errors = self._hub.errors
        return (errors.EntryNotFoundError, *((errors.LocalEntryNotFoundError,) if self._offline else ()))

    def _error(self, error: Exception) -> DownloadError:
        errors = self._hub.errors
        causes: Sequence[tuple[type[Exception], str, str]] = (
            (
                errors.HFValidationError,
                "that is not a name",
                "Check the name: it is OWNER/MODEL, as on the hub",
            ),
            (errors.GatedRepoError, "the model is gated", "Accept its terms and log in with `hf auth login`"),
            (errors.RepositoryNotFoundError, "there is no such model, or it is private", "Check the name"),
            (errors.RevisionNotFoundError, f"there is no revision {self._revision!r}", "Check the revision"),
            (errors.LocalEntryNotFoundError, "it is not in the cache" if self._offline else "no answer", ""),
            (errors.EntryNotFoundError, "it has no config.json", "Name a model that embeds texts"),
        )
        described = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
        reason, fix = next(
            ((reason, fix) for kind, reason, fix in causes if isinstance(error, kind)), (described, "")
        )
        fix = fix or "Pull it on a machine with a network and copy the encoder's folder, or set HF_ENDPOINT"
        return DownloadError(self._id, reason, fix=fix)
