"""Several revisions from one ``alembic revision --autogenerate``, for what one transaction cannot do."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations, ops
from alembic.util import rev_id

from pgembed.database.scripts import REVISION
from pgembed.migrations.operations.base import PgembedOp

#: The end of the message of each revision of a series, by its number.
_SUFFIXES = ("", "drop", "add", "index", "not null")


class NextRevisionOp(PgembedOp):
    """What follows goes into a separate revision: the next part of a series."""

    def run(self, operations: Operations) -> None:
        """Nothing to do."""

    def render(self, context: AutogenContext) -> list[str]:  # noqa: ARG002
        return []

    def reverse(self) -> MigrateOperation:
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("next_revision",)


def in_parts(*parts: Iterable[MigrateOperation]) -> list[MigrateOperation]:
    """Operations of one table by part; each part of all tables becomes one revision."""
    listed = [list(part) for part in parts]
    while listed and not listed[-1]:
        listed.pop()
    joined: list[MigrateOperation] = []
    for number, part in enumerate(listed):
        joined += [NextRevisionOp()] if number else []
        joined += part
    return joined


def split_revisions(context: AutogenContext) -> None:
    """Have this run write a revision for each part.

    It runs after the ``process_revision_directives`` of ``context.configure()``, which sees one revision and
    may name it. With several databases it is called once for each, and their parts join the same revisions.
    """
    theirs = context.opts.get("process_revision_directives")
    if getattr(theirs, "splits_revisions", False):
        return

    def process(migration_context: Any, revision: Any, directives: list[ops.MigrationScript]) -> None:
        if theirs is not None:
            theirs(migration_context, revision, directives)
        if directives:
            _split(directives)
            if context.opts.get("render_as_batch"):
                for script in directives:
                    for listed in (*script.upgrade_ops_list, *script.downgrade_ops_list):
                        listed.ops[:] = _outside_of_batches(listed.ops)

    process.splits_revisions = True  # type: ignore[attr-defined]
    context.opts["process_revision_directives"] = process


def _split(directives: list[ops.MigrationScript]) -> None:
    last = directives[-1]
    chain: dict[int, ops.MigrationScript] = getattr(last, "pgembed_chain", {})
    upgrade = last.upgrade_ops_list[-1]
    parts = _parts(upgrade)
    if set(parts) <= {0} and not chain:
        return
    last.upgrade_ops_list.pop()
    down_token = last.downgrade_ops_list.pop().downgrade_token
    for number in sorted(parts):
        if not chain:
            script = last
        elif number in chain:
            script = chain[number]
        else:
            script = _following(directives, number)
        chain[number] = script
        script.pgembed_chain = chain  # type: ignore[attr-defined]
        part = ops.UpgradeOps(parts[number], upgrade_token=upgrade.upgrade_token)
        script.upgrade_ops_list.append(part)
        script.downgrade_ops_list.append(part.reverse_into(ops.DowngradeOps([], downgrade_token=down_token)))


def _following(directives: list[ops.MigrationScript], number: int) -> ops.MigrationScript:
    """A revision after the last one."""
    last = directives[-1]
    first = last.pgembed_first if hasattr(last, "pgembed_first") else last
    script = ops.MigrationScript(
        _next_id(str(last.rev_id)),
        ops.UpgradeOps([]),
        ops.DowngradeOps([]),
        message=" ".join(part for part in (first.message, _SUFFIXES[number]) if part),
        imports=set(first.imports),
        head=last.rev_id,
        version_path=first.version_path,
    )
    script._upgrade_ops, script._downgrade_ops = [], []
    script.pgembed_first = first  # type: ignore[attr-defined]
    directives.append(script)
    return script


def _next_id(previous: str) -> str:
    """The number after it, where revisions are numbered, else a random one, as Alembic's own."""
    return str(int(previous) + 1).zfill(len(previous)) if previous.isdigit() else rev_id()


def _parts(upgrade: ops.UpgradeOps) -> dict[int, list[MigrateOperation]]:
    """The operations by part; those of a table stay together."""
    parts: dict[int, list[MigrateOperation]] = {}
    for operation in upgrade.ops:
        if not isinstance(operation, ops.ModifyTableOps):
            parts.setdefault(0, []).append(operation)
            continue
        number = 0
        groups: dict[int, list[MigrateOperation]] = {}
        for each in operation.ops:
            if isinstance(each, NextRevisionOp):
                number += 1
            else:
                groups.setdefault(number, []).append(each)
        for number, group in groups.items():
            parts.setdefault(number, []).append(
                ops.ModifyTableOps(operation.table_name, group, schema=operation.schema)
            )
    return parts


def _outside_of_batches(operations: Iterable[MigrateOperation]) -> list[MigrateOperation]:
    """The operations with those of pgembed between the blocks of ``op.batch_alter_table``, not inside.

    A block collects Alembic's operations and runs them at its end; any others inside it run before them.
    """
    found: list[MigrateOperation] = []
    for operation in operations:
        if not isinstance(operation, ops.ModifyTableOps):
            found.append(operation)
            continue
        for ours, group in groupby(operation.ops, _is_ours):
            if ours:
                found += group
            else:
                found.append(ops.ModifyTableOps(operation.table_name, list(group), schema=operation.schema))
    return found


def _is_ours(operation: MigrateOperation) -> bool:
    return type(operation).__module__.startswith("pgembed.")


def written_installation(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> int:
    """The newest revision of pgembed's SQL objects that a migration of this environment installs, 0 for none.

    Without an environment (``compare_metadata()``), none is known.
    """
    environment = None if context.migration_context is None else context.migration_context.environment_context
    if environment is None:
        return REVISION
    name = upgrade_ops.upgrade_token.removesuffix("_upgrades")  # of one of several databases
    scripts = environment.script.walk_revisions()
    return max((each for script in scripts for each in _installations(Path(script.path), name)), default=0)


def _installations(path: Path, name: str) -> Iterator[int]:
    """The revisions that calls of ``op.install_pgembed`` name, in ``upgrade_<name>()`` if there is one."""
    body = ast.parse(path.read_bytes()).body
    named = {part.name: part for part in body if isinstance(part, ast.FunctionDef)}
    own = named.get(f"upgrade_{name}")
    for part in body if own is None else [own]:
        if isinstance(part, ast.FunctionDef) and part.name.startswith("downgrade"):
            continue
        for call in ast.walk(part):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "install_pgembed":
                given = [*call.args, *(each.value for each in call.keywords if each.arg == "revision")]
                value = given[0].value if given and isinstance(given[0], ast.Constant) else None
                yield value if isinstance(value, int) else REVISION
