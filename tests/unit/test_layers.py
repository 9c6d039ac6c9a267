"""The house rules that no type checker knows: imports run one way, and importing pgembed loads little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgembed

PACKAGE = Path(__file__).parents[2] / "pgembed"

#: Layers from the bottom up; parts of one layer do not import each other, but for what is named below.
LAYERS = (
    ("constants",),
    ("exc", "metrics"),
    ("encoders", "columns"),
    ("parts",),
    ("indexes", "database"),
    ("queries",),
    ("measuring", "clustering", "filling"),
    ("reembedding",),
    ("migrations", "testing", "cli"),
)
#: Neighbours on one layer that may be used: an error has no dependencies, and a column has an encoder.
NEIGHBOURS = {("metrics", "exc"), ("columns", "encoders")}
#: The folders of queries, each built of those before it.
QUERIES = ("core", "search", "words", "duplicates", "classification")
#: What filling does without, though it is above: it writes vectors, and knows nothing of searches.
APART = {("filling", "indexes"), ("filling", "queries")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
#: Imports of modules whose names only the run knows, and why they are no way around the layers.
BY_NAME = {
    "pgembed": "the face loads its parts when they are first asked for",
    "pgembed.filling.named_models": "the module of the user's models, from --models",
    "pgembed.cli.demo.corpus": "the standard library's modules that are written in C",
}
#: Who may use the package's face: moved names are answered by it.
FACED = {"pgembed.indexes"}

#: Names that several files have, and why each is the same thing there.
SHARED_NAMES = {
    "backfill": "the command in cli and what it runs",
    "failures": "the command in cli and what it lists",
    "worker": "the command in cli and what it runs",
    "declaration": "what users declare: an embedding column, and an index",
    "indexes": "one subject of migrations: compared, and its operations",
    "meaning_guard": "one subject of migrations: compared, and its operations",
    "installation": "one subject of migrations: compared, and its operations",
}


class Imports:
    """Which module of a package imports which, wherever in its file, but for type checkers alone.

    :ivar graph: by dotted name, the modules that each imports. A package's name is its ``__init__``, which
        also runs for whoever imports a module of that package from outside of it.
    :ivar by_string: the modules that import by a string: of the package itself, or one known at run time.
    """

    def __init__(self, root: Path) -> None:
        self.files = {
            ".".join(file.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): file
            for file in root.rglob("*.py")
        }
        self.root = root.name
        self.by_string: list[str] = []
        self.graph = {module: set(self._imported(module)) for module in self.files}

    def _imported(self, module: str) -> Iterator[str]:
        for node in statements(ast.parse(self.files[module].read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
                given = node.args[0] if node.args else None
                if not isinstance(given, ast.Constant) or given.value.split(".")[0] in (self.root, ""):
                    self.by_string.append(module)
                names = [given.value] if isinstance(given, ast.Constant) else []
            for name in names:
                if name.split(".")[0] == self.root:
                    yield from self._run_by(name, module)

    def _run_by(self, name: str, module: str) -> Iterator[str]:
        """The modules that run when ``module`` imports ``name``, a module or what one holds."""
        found = name if name in self.files else name.rpartition(".")[0]
        yield from {found} & self.files.keys()
        parents = found.split(".")[1:-1]
        for length in range(1, len(parents) + 1):
            parent = ".".join([self.root, *parents[:length]])
            if not f"{module}.".startswith(f"{parent}."):
                yield parent

    def circles(self) -> list[list[str]]:
        """The strongly connected components of more than one module, and modules that import themselves."""
        reached = {module: self._reached(module) for module in self.graph}
        found = {
            frozenset(other for other in reached[module] if module in reached[other])
            for module in self.graph
            if module in reached[module]
        }
        return sorted(map(sorted, found))

    def _reached(self, start: str) -> set[str]:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            further = self.graph[waiting.pop()] - reached
            reached |= further
            waiting += further
        return reached

    def upward(self) -> list[str]:
        """Imports of a part by one that is not above it, and those of the face."""
        return sorted(
            f"{module} -> {other}"
            for module, others in self.graph.items()
            for other in others
            if module != self.root and not allowed(module, other)
        )


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from (other, *statements(other))
        else:
            yield from (node, *statements(node))


def called(node: ast.Call) -> str:
    """The name of a function that is called, without its module."""
    return ast.unparse(node.func).rpartition(".")[2]


def allowed(module: str, other: str) -> bool:
    """Whether the layers let one module import another."""
    if "." not in other:
        return module in FACED
    part, imported = module.split(".")[1], other.split(".")[1]
    above = LEVEL[imported] < LEVEL[part] and (part, imported) not in APART
    return part == imported or above or (part, imported) in NEIGHBOURS


@pytest.fixture(scope="module")
def imports() -> Imports:
    return Imports(PACKAGE)


def test_imports_run_one_way(imports: Imports) -> None:
    assert sum(map(len, imports.graph.values())) > 500
    assert imports.upward() == []


def test_queries_are_built_of_those_before_them(imports: Imports) -> None:
    folders = {module: module.split(".")[2] for module in imports.graph if module.count(".") == 3}
    within = {m: QUERIES.index(name) for m, name in folders.items() if m.startswith("pgembed.queries.")}
    assert len(within) > 40
    upward = [(m, o) for m in within for o in imports.graph[m] if within.get(o, 0) > within[m]]
    assert upward == []


def test_commands_do_not_import_each_other(imports: Imports) -> None:
    commands = {
        module
        for module, file in imports.files.items()
        if module.startswith("pgembed.cli.") and "\ndef register(" in file.read_text()
    }
    assert {"pgembed.cli.index", "pgembed.cli.measuring", "pgembed.cli.worker"} < commands
    assert [(one, other) for one in commands for other in imports.graph[one] & commands] == []


def test_no_circles(imports: Imports) -> None:
    # The face imports all parts, by strings that are not known here.
    imports.graph["pgembed"] = set()
    assert imports.circles() == []


def test_no_imports_by_string(imports: Imports) -> None:
    assert set(imports.by_string) - BY_NAME.keys() == set()


def planted(folder: Path, code: str) -> Imports:
    """A small package with two modules in ``columns``, and ``code`` in the first of them."""
    for name, content in {
        "columns/__init__": "from pgembed.columns.one import ONE",
        "columns/one": code,
        "columns/two": "from pgembed.columns.one import ONE",
        "exc": "",
        "filling/__init__": "from pgembed.filling.worker import Worker",
        "filling/worker": "import pgembed.columns.two",
        "__init__": "",
    }.items():
        file = folder / "pgembed" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return Imports(folder / "pgembed")


@pytest.mark.parametrize(
    "code", ["from pgembed import exc", "import pgembed.exc, json", "import_module(name)"]
)
def test_a_package_without_circles(tmp_path: Path, code: str) -> None:
    imports = planted(tmp_path, code)
    assert imports.circles() == imports.upward() == []
    assert imports.graph["pgembed.columns.two"] == {"pgembed.columns.one"}
    assert imports.graph["pgembed.filling.worker"] == {"pgembed.columns", "pgembed.columns.two"}


@pytest.mark.parametrize(
    ("code", "circle"),
    [
        ("import pgembed.columns.two", {"one", "two"}),
        ("def function():\n    from pgembed.columns import two", {"one", "two"}),
        ("from pgembed.columns import ONE", {"", "one"}),
        ("from pgembed.columns.one import ONE", {"one"}),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from pgembed.columns.two import x", {"one", "two"}),
        ("import_module('pgembed.columns.two')", {"one", "two"}),
    ],
)
def test_a_circle_is_found(tmp_path: Path, code: str, circle: set[str]) -> None:
    names = sorted(f"pgembed.columns.{name}".rstrip(".") for name in circle)
    assert planted(tmp_path, code).circles() == [names]


@pytest.mark.parametrize(
    "code",
    [
        "from pgembed.filling import worker",
        "class Any:\n    def method(self):\n        import pgembed.filling.worker",
        "importlib.import_module('pgembed.filling.worker')",
        "__import__('pgembed.filling.worker')",
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, code: str) -> None:
    imports = planted(tmp_path, code)
    assert imports.upward() == [f"pgembed.columns.one -> pgembed.filling{end}" for end in ("", ".worker")]
    assert imports.circles() != []


def test_an_import_of_the_face_is_found(tmp_path: Path) -> None:
    assert planted(tmp_path, "from pgembed import Encoder").upward() == ["pgembed.columns.one -> pgembed"]


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        ("import_module('pgembed.exc')", True),
        ("importlib.import_module(f'pgembed.{part}')", True),
        ("importlib.import_module('.two', __package__)", True),
        ("import_module(name=where)", True),
        ("__import__(name)", True),
        ("import_module('json')", False),
        ("find_spec('pgembed.exc')", False),
    ],
)
def test_an_import_by_string_is_found(tmp_path: Path, call: str, refused: bool) -> None:
    assert planted(tmp_path, f"def function():\n    return {call}").by_string == (
        ["pgembed.columns.one"] if refused else []
    )


def test_what_is_for_type_checkers_alone_does_not_count(tmp_path: Path) -> None:
    imports = planted(tmp_path, "if TYPE_CHECKING:\n    from pgembed.filling import worker")
    assert imports.graph["pgembed.columns.one"] == set()


def test_every_part_has_its_layer() -> None:
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} <= LEVEL.keys()


def test_a_file_has_a_name_of_its_own() -> None:
    """But for pairs with one meaning, which docs/development.md explains."""
    names = Counter(file.stem for file in PACKAGE.rglob("*.py") if file.stem != "__init__")
    assert {name: count for name, count in names.items() if count > 1} == dict.fromkeys(SHARED_NAMES, 2)


def loaded(code: str, *modules: str) -> list[str]:
    """Which of the modules a new process has loaded when it has run the code."""
    code += f"\nimport sys; print(*(name for name in {modules} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code", ["import pgembed", "from pgembed import Encoder, PgembedError", "import pgembed.encoders"]
)
def test_encoders_alone_load_nothing_of_databases(code: str) -> None:
    assert loaded(code, "pgembed.encoders", "sqlalchemy.orm", "pgembed.columns") == ["pgembed.encoders"]


def test_programs_without_asyncio_need_no_greenlet() -> None:
    code = "import sys; sys.modules['greenlet'] = None\nfrom pgembed import *"
    assert loaded(code, "pgembed.queries") == ["pgembed.queries"]


@pytest.mark.parametrize(
    "code",
    [
        "from pgembed import embedding_column",
        "from pgembed import *",
        "import pgembed; pgembed.Vector",
        "from pgembed import database",
        # From the part itself, the first column does.
        "from pgembed.columns import embedding_column; from pgembed.encoders import Encoder\n"
        "embedding_column('words', encoder=Encoder('any', fingerprint='0' * 32, dimensions=3))",
    ],
)
def test_hooks_listen_before_there_is_a_column(code: str) -> None:
    parts = ("pgembed.columns.hooks.flush", "pgembed.columns.registration")
    assert loaded(code, *parts) == list(parts)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'pgembed' has no attribute 'nothing'"):
        pgembed.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert {name for name in pgembed.__all__ if not hasattr(pgembed, name)} == set()


def test_importing_loads_no_runtime_no_migrations_no_command_line() -> None:
    heavy = (
        "psycopg",
        "onnxruntime",
        "onnx",
        "safetensors",
        "tokenizers",
        "alembic",
        "typer",
        "rich",
        "matplotlib",
    )
    light = "pgembed.filling, pgembed.testing, pgembed.queries, pgembed.indexes, pgembed.parts"
    assert loaded(f"import {light}", *heavy) == []


def test_measuring_has_its_old_addresses() -> None:
    for name in ("Latency", "Recall", "Tuning", "plot", "recall", "sweep", "tune"):
        assert getattr(pgembed.indexes, name) is getattr(pgembed.measuring, name)
    alone = "from pgembed.indexes import tune; assert tune.__module__ == 'pgembed.measuring.tuning'"
    assert loaded(alone, "matplotlib") == []
    with pytest.raises(AttributeError, match=r"module 'pgembed\.indexes' has no attribute 'nothing'"):
        pgembed.indexes.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "package",
    [
        *["encoders", "filling", "indexes", "measuring", "parts", "queries"],
        *(f"queries/{name}" for name in QUERIES),
    ],
)
def test_the_table_of_a_package_names_its_files(package: str) -> None:
    """Each once, and none that is gone."""
    folder = PACKAGE / package
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    bars = [line for line in docstring.splitlines() if line.startswith("===")]
    width = bars[0].index(" ")
    rows = docstring.split(bars[0])[2].splitlines()
    named = [name for row in rows for name in row[:width].replace(",", " ").split()]
    files = [file.stem for file in folder.glob("*.py") if file.stem != "__init__"]
    folders = [file.parent.name for file in folder.glob("*/__init__.py")]
    assert sorted(named) == sorted([*files, *folders])


def test_the_catalogue_of_indexes_has_one_reader() -> None:
    """What Postgres says of an index is read in two files; filling, which knows no indexes, asks for keys."""
    readers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if "pg_catalog.pg_index " in (code := file.read_text()) or '"pg_index"' in code
    }
    assert readers == {"indexes/standing.py", "indexes/readiness.py", "filling/registry.py"}
