"""What the documents promise exists: make targets, commands, configs, and no trace of one machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from configs.loading import load_settings
from configs.schema import Settings

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
ALL_DOCUMENTS = [*DOCUMENTS, *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
# in the schemas of Ray and Prometheus
OTHERS = {
    "cluster-local.yaml",
    "prometheus.yaml",
    "prometheus-alerts.yaml",
    "runtime_env.yaml",
    "serve.yaml",
    "serve_all_interfaces.yaml",
}

# Written so that this file does not match itself.
MACHINE = re.compile(r"/(?:[w]ork|[r]oot|[U]sers)/|/home/(?!ray\b|trialgate\b)\w+/|/tmp/[d]ev\b")


def _text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", _text("Makefile"), re.MULTILINE))


def test_the_makefile_has_what_is_promised() -> None:
    assert {"quickstart", "test", "test-all", "lint", "clean", "help"} <= _targets()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_of_the_documents_exists(document: str) -> None:
    code = re.findall(r"```.*?```|`[^`\n]+`", _text(document), re.DOTALL)
    named = {target for block in code for target in re.findall(r"\bmake ([a-z][a-z-]*)", block)}
    assert named, f"{document} names no make target"
    assert named <= _targets()


@pytest.mark.parametrize("document", ALL_DOCUMENTS)
def test_every_module_that_the_documents_run_exists(document: str) -> None:
    for module in set(re.findall(r"python -m ((?:gate|ray_jobs|serve_app|configs|tests)\b[\w.]*)", _text(document))):
        path = REPOSITORY.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{document}: python -m {module}"


@pytest.mark.parametrize("document", ALL_DOCUMENTS)
def test_every_file_and_heading_that_the_documents_link_to_exists(document: str) -> None:
    here = REPOSITORY / document
    for link, heading in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", _text(document)):
        target = here.parent / link if link else here
        assert target.exists(), f"{document} links to {link}"
        if heading:
            assert heading in _anchors(target.read_text(encoding="utf-8")), f"{document} links to {link}#{heading}"


def _anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_block_for_jobs_is_the_one_that_is_run() -> None:
    (block,) = re.findall(r"```bash\n.*?```", _text("docs/jobs.md"), re.DOTALL)
    assert block in _text("README.md"), "tests/e2e/test_jobs_document.py runs that of docs/jobs.md"


def test_every_yaml_of_the_search_document_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", _text("docs/search.md"), re.DOTALL)
    assert blocks
    for block in blocks:
        Settings.model_validate(yaml.safe_load(block))


def _shipped() -> list[Path]:
    return sorted((REPOSITORY / "configs").glob("*.yaml"))


def test_the_promised_configs_ship() -> None:
    assert {"quickstart.yaml", "imdb.yaml", "serving.yaml", "serve.yaml"} <= {path.name for path in _shipped()}


@pytest.mark.parametrize("path", [path for path in _shipped() if path.name not in OTHERS], ids=lambda path: path.name)
def test_every_shipped_config_loads_by_its_bare_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = load_settings(path.name, on_cluster=False)
    on_cluster = load_settings(path.name, ["tracking.uri=http://mlflow:5000"], on_cluster=True)
    assert isinstance(local, Settings)
    assert on_cluster.training == local.training


def test_the_serve_config_is_valid_and_listens_on_loopback() -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(_text("configs/serve.yaml"))
    ServeDeploySchema.model_validate(values)
    assert values["http_options"]["host"] == "127.0.0.1"
    for application in values["applications"]:
        name = application["args"]["config"]
        assert (REPOSITORY / "configs" / name).is_file(), "a bare name works wherever the application is built"


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    folders = ["configs", "docs", "gate", "ray_jobs", "serve_app", "tests", ".ci", ".github"]
    files = [path for path in REPOSITORY.iterdir() if path.is_file() and path.name != ".git"]  # a file in a worktree
    files += [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    for path in files:
        if "__pycache__" in path.parts:
            continue
        found = MACHINE.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(REPOSITORY)} names {found[0]}"
