"""docs/deploying.md says what the files say."""

from __future__ import annotations

import re

from tests.unit.ship.tools import IMAGE, PROJECT, REPOSITORY, text

DOCUMENT = text("docs/deploying.md")
BLOCKS = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)


def comment(path: str) -> str:
    """The comment that a file begins with."""
    lines = text(path).splitlines()
    return "\n".join(line.removeprefix("#").removeprefix("   ") for line in lines if line.startswith("#"))


def block(beginning: str) -> list[str]:
    (found,) = [block for block in BLOCKS if beginning in block]
    return [line for line in found.splitlines() if line]


def test_the_commands_are_those_that_stand_in_the_files() -> None:
    assert "\n".join(block("docker compose")[:2]) in comment(".env.example")
    assert block("docker compose")[2] in comment("docker-compose.yml")
    for line in block("kubectl"):
        if not line.startswith("kubectl wait"):
            assert line in comment("configs/kubernetes/ray-service.yaml")


def test_what_it_names_exists() -> None:
    for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", DOCUMENT):
        assert (REPOSITORY / "docs" / link).exists(), link
    for path in re.findall(r"`((?:configs|tests|serve_app)/[\w./]+|\.github/\w+|\w+\.yaml)`", DOCUMENT):
        assert [*REPOSITORY.glob(path), *REPOSITORY.glob(f"configs/kubernetes/{path}")], path
    for module in re.findall(r"python -m ((?:gate|ray_jobs|serve_app)[\w.]*)", DOCUMENT):
        path = REPOSITORY.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    assert set(re.findall(r"trialgate:[\d.]+", DOCUMENT)) == {IMAGE}
    assert "ship" in PROJECT["optional-dependencies"]


def test_every_section_says_what_it_needs() -> None:
    sections = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]
    assert len(sections) == 5
    for section in sections[1:]:
        assert section.split("\n\n")[1].startswith("*Needs "), section.splitlines()[0]


def test_variables_and_secrets_are_those_of_the_workflows() -> None:
    workflows = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / ".github/workflows").glob("*.yml"))
    used = set(re.findall(r"(?:vars|secrets)\.(\w+)", workflows))
    table = DOCUMENT[DOCUMENT.index("| | name | where |") :]
    assert used == set(re.findall(r"`([A-Z_]+)`", table))
