"""What people look at beside a decision's record: its page, the picture of its comparison, and the model card."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gate import audit
from gate.candidates import active_run_id
from gate.card_facts import gather_card
from gate.comparison import Comparison
from gate.decision import Decision
from gate.decision_page import decision_page
from gate.model_card import card_description, card_html, card_markdown
from gate.pictures import comparison_figure
from serve_app.mlflow_client import is_unreachable
from serve_app.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PAGE_FILE: Final = "decision.html"
PICTURE_FILE: Final = "comparison.png"
CARD_FILE, CARD_PAGE_FILE = "model_card.md", "model_card.html"
_CARD_BEGINS: Final = "# Model card: "  # a description that a person wrote does not


def attach(client: MlflowClient, decision: Decision) -> None:
    """Puts all of it on the decision's run, decision and page on the candidate's, and the card on the version that was
    promoted. Doing it again writes the same again."""
    assert decision.decision_id is not None
    comparison = decision.evidence.comparison if decision.evidence else None
    with tempfile.TemporaryDirectory(prefix="trialgate-pages-") as temporary:
        folder = Path(temporary)
        _write(folder / PAGE_FILE, lambda: decision_page(decision).encode())
        if decision.action == "promote" and active_run_id(client, decision.run_id):
            with _not_held_up(f"the decision on the candidate's run {decision.run_id}"):
                _attach_to_candidate(client, decision, folder)
        if comparison is not None:
            _write(folder / PICTURE_FILE, lambda: _png(comparison))
        if decision.action == "promote" and decision.passed:
            with _not_held_up(f"the model card of version {decision.model_version}"):
                _attach_card(client, decision, folder)
        client.log_artifacts(decision.decision_id, temporary)


@contextlib.contextmanager
def _not_held_up(what: str) -> Iterator[None]:
    """A copy that cannot be written is told: the record of what has happened must not wait for it for ever. A store
    that is gone is another matter: it comes back, and the next command writes all of it."""
    try:
        yield
    except Exception as error:
        if is_unreachable(error):
            raise
        logger.warning("%s could not be written: %s", what, refusal(error) or repr(error))


def _attach_to_candidate(client: MlflowClient, decision: Decision, page: Path) -> None:
    assert decision.run_id is not None
    with tempfile.TemporaryDirectory(prefix="trialgate-pages-") as folder:
        shutil.copytree(page, folder, dirs_exist_ok=True)
        (Path(folder) / audit.DECISION_FILE).write_text(decision.model_dump_json(indent=2), encoding="utf-8")
        client.log_artifacts(decision.run_id, folder, f"decisions/{decision.decision_id}")


def _attach_card(client: MlflowClient, decision: Decision, folder: Path) -> None:
    """Writes the card into ``folder``, and as the version's description unless somebody wrote another one."""
    name, version = decision.model_name, decision.model_version
    assert version is not None
    card = gather_card(client, name, version, decision)
    _write(folder / CARD_PAGE_FILE, lambda: card_html(card).encode())
    before = client.get_model_version(name, version).description or ""
    if _write(folder / CARD_FILE, lambda: card_markdown(card).encode()) and (
        not before or before.startswith(_CARD_BEGINS)
    ):
        client.update_model_version(name, version, card_description(card))


def _png(comparison: Comparison) -> bytes:
    content = io.BytesIO()
    comparison_figure(comparison).savefig(content, format="png", dpi=120)
    return content.getvalue()


def _write(path: Path, make: Callable[[], bytes]) -> bool:
    """Writes what ``make`` makes, if it makes anything.

    What was decided has happened already: a mistake in a page must not keep its record, and with it every later
    command, from being finished. A text in the page's place says what happened.
    """
    try:
        path.write_bytes(make())
    except Exception as error:
        logger.exception("%s could not be made", path.name)
        missing = f"{path.name} could not be made ({error!r}). decision.json has all that it would show.\n"
        path.with_name(f"{path.name}.txt").write_text(missing, encoding="utf-8")
        return False
    return True
