"""docs/configuration.md is what the schema says."""

from pathlib import Path

from configs.loading import _every_key
from configs.reference import reference
from configs.schema import Settings

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_page_is_that_of_the_schema() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m configs.reference > docs/configuration.md"


def test_it_has_every_setting_once_with_a_description() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    named = [cells[0].removeprefix("| ").strip("`") for cells in rows if len(cells) == 4]
    sections = {key.rpartition(".")[0] for key in _every_key(Settings)} - {""}
    wanted = [key for key in _every_key(Settings) if key not in sections]
    assert sorted(name for name in named if name not in sections) == sorted(wanted)
    assert all(cells[3].strip(" |") for cells in rows if len(cells) == 4), "a setting has no description"
