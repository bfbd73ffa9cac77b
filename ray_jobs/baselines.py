"""Compares model families on the same data: one search each, and the best trial of each on the same frozen test split.

    python -m ray_jobs.baselines --config baselines.yaml [--only NAME ...] [--set key=value ...]

Each baseline of the config is a search of its own, in MLflow like any other; its winner is scored by the gate's own
scoring, and nothing is registered. ``python -m gate promote --run-id R`` takes a row of the table further.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.exit_codes import CommandFailed, ExitCode
from configs.loading import ConfigError, baseline_settings, load_settings
from configs.schema import Settings
from ray_jobs.cluster import connected
from ray_jobs.command import job_parser, say
from ray_jobs.search import SearchResult, run_search
from serve_app import mlflow_client
from serve_app.console import run_command

if TYPE_CHECKING:
    from mlflow import MlflowClient


class NotComparable(CommandFailed):
    """The models of two searches were not scored on the same test split."""


@dataclass(frozen=True)
class Row:
    """The best trial of one baseline. Texts per second of training are the median epoch's, those of inference the
    gate's on the test split; ``train_seconds``: of that trial's epochs, with validation, without starting processes."""

    baseline: str
    family: str
    validation_f1: float
    test_f1: float
    test_accuracy: float
    parameters: int
    train_texts: int
    train_seconds: float
    train_texts_per_second: float
    inference_texts_per_second: float
    precision: str
    trials: int
    hyperparameters: dict[str, Any]
    run_id: str
    test_digest: str


def run_baselines(settings: Settings, only: list[str] | None = None) -> list[Row]:
    """One search after the other, in the order of the config (or of ``only``); every row is said when it is there.

    Raises what ``run_search`` and the gate's scoring raise.
    """
    if not settings.baselines:
        raise ConfigError("the settings have no baselines: use --config baselines.yaml, or name some under baselines")
    planned = {name: baseline_settings(settings, name) for name in only or settings.baselines}
    client = mlflow_client.connect(settings.tracking)
    rows: list[Row] = []
    with connected(settings.home):
        for place, (name, own) in enumerate(planned.items(), start=1):
            say(f"baseline {place} of {len(planned)}: {name} ({own.model.family})")
            rows.append(row(client, name, own, run_search(own)))
            say(table(rows[-1:]))
            if rows[-1].test_digest != rows[0].test_digest:
                raise NotComparable(
                    f"{name} has another test split than {rows[0].baseline}: the data changed meanwhile"
                )
    return rows


def row(client: MlflowClient, name: str, settings: Settings, result: SearchResult) -> Row:
    """Scores the search's best trial on the frozen test split and takes the rest of the row from its run."""
    from gate.candidates import find_candidate  # these bring torch, for which --help need not wait
    from gate.judgement import score_candidate
    from serve_app.inference.saved_model import parameter_count

    candidate = find_candidate(client, run_id=result.parent_run_id)
    with tempfile.TemporaryDirectory(prefix="tg-baseline-") as folder:
        found, _ = score_candidate(client, candidate, settings.serving.precision, Path(folder))
        score, parameters = found.scored.score, parameter_count(found.folder)
        data = json.loads(Path(client.download_artifacts(result.parent_run_id, "data.json", folder)).read_text())
    assert candidate.run_id is not None
    epochs = {
        metric: [point.value for point in client.get_metric_history(candidate.run_id, metric)]
        for metric in ("seconds", "train_texts_per_second", "best_validation_f1")
    }
    speeds = sorted(epochs["train_texts_per_second"])
    return Row(
        baseline=name,
        family=settings.model.family,
        validation_f1=max(epochs["best_validation_f1"]),
        test_f1=score.f1,
        test_accuracy=score.accuracy,
        parameters=parameters,
        train_texts=sum(data["classes"]["train"].values()),
        train_seconds=round(sum(epochs["seconds"]), 1),
        train_texts_per_second=round(speeds[len(speeds) // 2], 1),
        inference_texts_per_second=round(score.texts_per_second, 1),
        precision=score.key.precision,
        trials=len(result.trials),
        hyperparameters=result.best.parameters,
        run_id=candidate.run_id,
        test_digest=score.key.test_digest,
    )


def table(rows: list[Row]) -> str:
    """The rows as Markdown, so that they can be read and pasted."""
    cells = [
        {
            "baseline": row.baseline,
            "F1 validation": f"{row.validation_f1:.4f}",
            "F1 test": f"{row.test_f1:.4f}",
            "accuracy test": f"{row.test_accuracy:.4f}",
            "parameters": f"{row.parameters:,}",
            "training texts": f"{row.train_texts:,}",
            "train seconds": f"{row.train_seconds:.0f}",
            "train texts/s": f"{row.train_texts_per_second:,.0f}",
            "inference texts/s": f"{row.inference_texts_per_second:,.0f}",
        }
        for row in rows
    ]
    columns = list(cells[0])
    widths = {name: max(len(name), *(len(line[name]) for line in cells)) for name in columns}
    ruler = {name: "-" * widths[name] for name in columns}
    lines = [{name: name for name in columns}, ruler, *cells]
    return "\n".join("| " + " | ".join(line[name].ljust(widths[name]) for name in columns) + " |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = job_parser("python -m ray_jobs.baselines", (__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this baseline alone; may be given several times"
    )
    args = parser.parse_args(argv)

    def work() -> tuple[dict[str, Any], list[str], int]:
        started = time.monotonic()
        rows = run_baselines(load_settings(args.config, args.overrides), args.only)
        found = {"baselines": [asdict(row) for row in rows], "seconds": round(time.monotonic() - started, 1)}
        return found, [table(rows)], ExitCode.OK

    return run_command(work, as_json=args.json, json_file=args.json_file)


if __name__ == "__main__":
    sys.exit(main())
