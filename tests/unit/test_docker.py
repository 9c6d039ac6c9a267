"""The files in docker/, checked without an engine: they parse, pin versions and name what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url
from typer import Context
from typer.main import get_command

from pgembed.cli.main import app
from pgembed.indexes.findings import bugs_of

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
PGVECTOR: Any = re.match(r"pgvector/pgvector:(\d+\.\d+\.\d+)-pg\$", COMPOSE["services"]["postgres"]["image"])
STAGES = dict(re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the services have."""
    monkeypatch.setenv("PGEMBED_URL", COMPOSE["services"]["init"]["environment"]["PGEMBED_URL"])


def check(name: str, *arguments: str) -> None:
    """
    :raises ClickException: `pgembed` has no such command, or that no such options.
    """
    command = get_command(app)
    _, found, rest = command.resolve_command(Context(command), [name, *arguments])  # type: ignore[attr-defined]
    found.make_context(name, rest)


@pytest.mark.parametrize("name", ["init", "worker", "worker-gpu"])
def test_services_build_what_the_dockerfile_has_and_run_what_pgembed_has(name: str) -> None:
    service = COMPOSE["services"][name]
    build = service["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert build["target"] in STAGES.values()
    assert service["image"] == f"pgembed:{build['target']}"
    check(*service["command"])


def test_images_are_pinned() -> None:
    for image in STAGES:
        assert re.search(r":\d+\.\d+\.\d+", image), image
    assert PGVECTOR is not None


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_index_check_has_nothing_against_the_pgvector_of_the_image(method: str) -> None:
    assert bugs_of(method, PGVECTOR[1]) == []
    assert bugs_of(method, "0.7.4") != []


def test_nothing_runs_as_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    for stage in stages:
        assert re.search(r"^USER 10001$", stage, re.MULTILINE)
        assert stage.index("USER") < stage.index("ENTRYPOINT")


def test_long_running_services_have_health_checks_and_start_in_order() -> None:
    services = COMPOSE["services"]
    for name in ("postgres", "worker", "worker-gpu"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
        if name != "postgres":
            program, *arguments = services[name]["healthcheck"]["test"][1:]
            assert program == "pgembed"
            check(*arguments)
    assert "--host" in services["postgres"]["healthcheck"]["test"]  # `init` runs once: no answer is too early
    assert services["init"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("worker", "worker-gpu"):
        assert services[name]["depends_on"]["init"]["condition"] == "service_completed_successfully"
    used = {volume.split(":")[0] for volume in services["postgres"]["volumes"]}
    assert used == COMPOSE["volumes"].keys()


def test_secrets_and_extras() -> None:
    for name in ("init", "worker", "worker-gpu"):
        environment = COMPOSE["services"][name]["environment"]
        assert make_url(environment["PGEMBED_URL"]).password is None  # in a URL, some characters are escaped
        assert (
            environment["PGPASSWORD"] == COMPOSE["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]
        )
        assert environment["PGPASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    for target in ("cpu", "gpu"):
        assert f'"/src[{target}]"' in DOCKERFILE
