"""The report of a search: one HTML page that opens without a network, and the words on its parent run in MLflow.

    python -m ray_jobs.report --search NAME|FOLDER | --run-id PARENT [--config FILE] [--set key=value ...]

Every search leaves its page as report.html in its storage folder and on its parent run; this command draws it anew.
"""

from __future__ import annotations

import argparse
import posixpath
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import fsspec

from configs.exit_codes import EXIT_CODES, ExitCode
from configs.loading import ConfigError, load_settings
from configs.schema import Settings
from ray_jobs import disk
from ray_jobs.command import say
from ray_jobs.history import SearchHistory, duration, read_search, short
from ray_jobs.report_page import amount, counts, data_source, gate_command, page
from serve_app import mlflow_client as names
from serve_app.console import run_command

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ray_jobs.tracking import Tracker

REPORT_FILE = "report.html"
BEST = "trialgate.best"
NOTE = "mlflow.note.content"  # what MLflow shows as a run's description


def write(folder: str, name: str, run_ids: Mapping[str, str | None] | None = None) -> SearchHistory:
    """Draws the report of the search in ``folder`` (path or URL), writes it there and returns what it shows.

    ``run_ids``: MLflow runs by trial. Raises ConfigError when there is no search.
    """
    search = read_search(folder, name)
    for trial in search.trials:
        trial.run_id = (run_ids or {}).get(trial.trial_id)
    disk.write_whole(f"{folder}/{REPORT_FILE}", page(search))
    return search


def publish(client: MlflowClient, parent_run_id: str, folder: str, search: SearchHistory) -> None:
    """Puts the written report and the description on the parent run, and marks the winner's run."""
    parent = client.get_run(parent_run_id)
    winner = search.winner
    marked = f"tags.`{names.PARENT_RUN}` = '{parent_run_id}' and tags.`{BEST}` = 'true'"
    for run in client.search_runs([parent.info.experiment_id], marked):
        if winner is None or run.info.run_id != winner.run_id:  # of a search that was interrupted, and went on
            client.set_tag(run.info.run_id, BEST, "false")
            client.set_tag(run.info.run_id, NOTE, "")
    if winner is not None and winner.run_id is not None:
        client.set_tag(winner.run_id, BEST, "true")
        client.set_tag(winner.run_id, NOTE, _winner_note(search.name, winner.f1 or 0.0, winner.best_epoch))
    note = description(search, parent_run_id, parent.info.experiment_id, parent.data.tags, f"{folder}/{REPORT_FILE}")
    client.set_tag(parent_run_id, NOTE, note)
    with fsspec.open(f"{folder}/{REPORT_FILE}", "r", encoding="utf-8") as file:
        client.log_text(parent_run_id, file.read(), REPORT_FILE)


def leave(tracker: Tracker, name: str) -> SearchHistory | None:
    """Writes the report of a search that is ending, and returns what it shows; it needs no MLflow.

    The search does not fail because this does: trouble is said in a line, and None returned.
    """
    folder = _folder(tracker)
    try:
        search = write(folder, name, {trial.trial_id: trial.run_id for trial in tracker.trials.values()})
    except Exception as error:  # noqa: BLE001 - every store has exceptions of its own
        say(f"the report could not be made: {type(error).__name__}: {error}")
        return None
    say(f"report: {folder}/{REPORT_FILE}")
    return search


def to_mlflow(tracker: Tracker, search: SearchHistory | None) -> None:
    """Publishes what ``leave`` has written.

    Trouble is said in a line, except for MLflow being out of reach, which the search has an answer to (raised as MLflow
    raises it).
    """
    if search is None:
        return
    try:
        publish(tracker.client, tracker.parent_run_id, _folder(tracker), search)
    except Exception as error:
        if names.is_unreachable(error):
            raise
        say(f"the report could not be put on the search's run: {type(error).__name__}: {error}")


def _folder(tracker: Tracker) -> str:
    return posixpath.dirname(tracker.journal.location)


def description(
    search: SearchHistory, parent_run_id: str, experiment_id: str, tags: Mapping[str, str], report: str
) -> str:
    """What MLflow shows above the parent run, in Markdown. ``tags``: the parent's; ``report``: where the page lies."""
    resource, held = search.resource
    spent = amount(sum(trial.seconds for trial in search.trials) * held)
    lines = [
        *_outcome(search, experiment_id),
        "",
        f"- Trials: {counts(search)}, in {duration(search.seconds)}; {spent} of {resource} time",
        f"- Data: {data_source(search)}{_digests(tags)}",
        f"- Report: `{REPORT_FILE}` under Artifacts, and `{report}`",
        f"- Settings: `{names.SETTINGS_FILE}` under Artifacts; again with the same: "
        f"`python -m ray_jobs.search --from-run {parent_run_id}`",
    ]
    if search.winner is not None:
        run_id = search.winner.run_id or parent_run_id
        lines += [
            f"- Would it pass the gate: `{gate_command(run_id)}`",
            f"- Promote it: `python -m gate promote --run-id {run_id}`",
        ]
    return "\n".join(lines)


def _outcome(search: SearchHistory, experiment_id: str) -> list[str]:
    winner = search.winner
    if winner is None:
        error = search.first_error
        first = ["", "The first error:", "", f"    {error[:500]}"] if error else []
        return [f"**No winner**: none of the {len(search.trials)} trials gave a model.", *first]
    link = f"[{winner.run_id}](#/experiments/{experiment_id}/runs/{winner.run_id})" if winner.run_id else "unknown"
    lines = [f"**Winner: run {link}, validation F1 {winner.f1:.4f}**, after epoch {winner.best_epoch}"]
    if search.why is not None:
        lines += ["", f"to the gate because: {search.why}"]
    if winner.parameters:  # in one line: MLflow folds a description after a few
        given = ", ".join(f"`{key}` {short(value, 6)}" for key, value in sorted(winner.parameters.items()))
        lines += ["", f"with {given}"]
    return lines


def _winner_note(search: str, f1: float, epoch: int) -> str:
    return f"**The winner of search {search}**: validation F1 {f1:.4f}, after epoch {epoch}."


def _digests(tags: Mapping[str, str]) -> str:
    shown = {key.rpartition(".")[2].removesuffix("_digest"): tags[key][:12] for key in sorted(tags) if "_digest" in key}
    return f" ({', '.join(f'{split} `{digest}`' for split, digest in shown.items())})" if shown else ""


def rewrite(settings: Settings, *, search: str | None = None, run_id: str | None = None) -> str:
    """Draws the report of an earlier search anew and returns where it is; by its parent run, it is put there too.

    Raises ConfigError when there is no such search.
    """
    if search is not None:
        folder = search if "/" in search else f"{settings.search.storage}/{search}"
        folder = folder.removesuffix("/journal.jsonl").rstrip("/")
        write(folder, posixpath.basename(folder))
        return f"{folder}/{REPORT_FILE}"
    assert run_id is not None
    client = names.connect(settings.tracking)
    parent = names.find_run(client, run_id)
    if parent is None:
        raise ConfigError(f"run '{run_id}' does not exist at {names.redact(client.tracking_uri)}")
    if parent.data.tags.get(names.KIND) != names.KIND_SEARCH:
        raise ConfigError(f"run '{run_id}' is no search's parent run: its tag {names.KIND} is "
                          f"{parent.data.tags.get(names.KIND)!r}")  # fmt: skip
    name = parent.data.tags[names.SEARCH_NAME]
    trials = client.search_runs(
        [parent.info.experiment_id], f"tags.`{names.PARENT_RUN}` = '{run_id}'", max_results=50_000
    )
    run_ids = {run.data.tags[names.TRIAL_ID]: run.info.run_id for run in trials}
    folder = f"{settings.search.storage}/{name}"
    publish(client, run_id, folder, write(folder, name, run_ids))
    return f"{folder}/{REPORT_FILE}"


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.report", description=(__doc__ or "").split("\n")[0],
                                     epilog=EXIT_CODES)  # fmt: skip
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--search", metavar="NAME|FOLDER", help="the search's name, or the folder with its journal")
    which.add_argument("--run-id", metavar="PARENT", help="the search's parent run")
    parser.add_argument("--config", metavar="FILE", help="a config that sets home, search.storage or tracking.uri")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change one setting; may be given several times")  # fmt: skip
    args = parser.parse_args(argv)

    def work() -> tuple[dict[str, Any], list[str], int]:
        report = rewrite(load_settings(args.config, args.overrides), search=args.search, run_id=args.run_id)
        return {"report": report}, [report], ExitCode.OK

    return run_command(work, as_json=False, json_file=None)


if __name__ == "__main__":
    sys.exit(main())
