"""The list of modules in a model's folder, and the routes that a router chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pgembed.encoders.files import Folder, JsonObject, is_name, read_json, shown
from pgembed.exc import EncoderFilesError

MODULES_FILE = "modules.json"
ROUTER_FILE = "router_config.json"
FIRST_MODULES = ("Transformer", "StaticEmbedding", "WordEmbeddings")
LATER_MODULES = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")


@dataclass(frozen=True)
class Module:
    """An entry of the list of modules: its class, without the package, and its subfolder."""

    kind: str
    place: str


def inside(place: str, name: str) -> str:
    """The path of a file in a subfolder, ``""`` for the model's own folder."""
    return f"{place}/{name}".removeprefix("/")


def has_towers(folder: Folder) -> bool:
    """Whether the model has a separate route for queries."""
    modules = listed(folder)
    if not modules or modules[0].kind != "Router":
        return False
    structure = JsonObject.optional(folder.file(inside(modules[0].place, ROUTER_FILE))).table("structure")
    return "query" in structure and structure["query"] != structure.get("document")


def places(folder: Folder) -> list[str]:
    """The subfolders of the modules in a model's list; the model's own folder if there is no list."""
    modules = listed(folder)
    if modules == []:
        raise EncoderFilesError(
            folder.file(MODULES_FILE), "no list of modules ([])", needed="type and path each"
        )
    return [""] if modules is None else [module.place for module in modules]


def places_of_routes(folder: Folder, place: str) -> list[str]:
    """The subfolders of the modules after a router in the subfolder ``place``."""
    path = folder.file(inside(place, ROUTER_FILE))
    found = [inside(place, name) for name in JsonObject.read(path).table("types")]
    for name in found:
        folder.subfolder(name, stated_in=path)
    return found


def modules_of(folder: Folder, route: str) -> list[Module]:
    """The modules that a text goes through, in order."""
    modules = listed(folder)
    if modules is None:
        return [Module("Transformer", "")]
    path = folder.file(MODULES_FILE)
    if modules and modules[0].kind == "Router":
        modules[:1] = _route(folder, modules[0].place, route)
    if not modules or modules[0].kind not in FIRST_MODULES:
        found = modules[0].kind if modules else "no module"
        raise EncoderFilesError(path, f"{found} as the first module", needed=" or ".join(FIRST_MODULES))
    later = [module.kind for module in modules[1:]]
    for kind in later:
        if kind not in LATER_MODULES:
            raise EncoderFilesError(path, f"the module {kind}", needed=" or ".join(LATER_MODULES))
    counted = [kind for kind in later if kind != "Dropout"]
    is_static = modules[0].kind == "StaticEmbedding"  # it averages by itself
    if counted.count("Pooling") != (not is_static) or (not is_static and counted[0] != "Pooling"):
        found = f"{' and '.join(later) or 'nothing'} after the {modules[0].kind}"
        needed = "Pooling first, and once: a model that gives one vector a text"
        raise EncoderFilesError(path, found, needed="no Pooling" if is_static else needed)
    return modules


def listed(folder: Folder) -> list[Module] | None:
    """The list of modules, in its order, whatever the numbers in it; ``None`` if there is no list."""
    path = folder.file(MODULES_FILE)
    if not folder.has(MODULES_FILE):
        return None
    needed = "type and path each"
    try:
        entries = read_json(path) or []
    except EncoderFilesError as error:
        raise EncoderFilesError(path, f"no list of modules ({error.found})", needed=error.needed) from error
    if not isinstance(entries, list):
        raise EncoderFilesError(path, f"no list of modules ({shown(entries)})", needed=needed)
    modules = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or "path" not in entry:
            raise EncoderFilesError(path, f"no list of modules ({shown(entry)})", needed=needed)
        folder.subfolder(entry["path"], stated_in=path)
        modules.append(Module(_kind(entry["type"], path), entry["path"]))
    return modules


def _kind(name: str, path: Path) -> str:
    """The class of a module, which must be one of sentence-transformers: others may do anything."""
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or not is_name(kind):
        found = f"the module {shown(name)}"
        raise EncoderFilesError(
            path, found, needed="modules of sentence_transformers, without code of their own"
        )
    return kind


def _route(folder: Folder, place: str, route: str) -> list[Module]:
    """The modules of one route of a router."""
    path = folder.subfolder(place, stated_in=folder.file(MODULES_FILE)).file(ROUTER_FILE)
    router = JsonObject.read(path)
    if not {"structure", "types"} <= router.keys():
        raise EncoderFilesError(path, "no router", needed="structure and types")
    structure, types = router.table("structure"), router.table("types")
    names = structure.texts(route, [])
    if not names:
        listed = ", ".join(name if is_name(name) else shown(name) for name in structure)
        raise EncoderFilesError(path, f"the routes {listed}", needed=f"a route {route!r}")
    modules = []
    for name in names:
        if name not in types:
            raise EncoderFilesError(path, f"no router (no type for {shown(name)})", needed="a type each")
        folder.subfolder(inside(place, name), stated_in=path)
        modules.append(Module(_kind(types.text(name), path), inside(place, name)))
    return modules
