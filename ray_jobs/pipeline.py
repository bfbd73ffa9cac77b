"""The whole loop as one job: search, then the gate, then registration and promotion.

    python -m ray_jobs.pipeline --config FILE [--set key=value ...] [--resume NAME] [--dry-run]

The exit code follows the gate: 0 promoted, 3 blocked (0 with ``--blocked-ok``, for schedules).
"""

from __future__ import annotations

import sys
import time
from typing import Any

from configs.exit_codes import ExitCode
from configs.loading import load_settings
from configs.schema import Settings
from gate.decision import Decision
from gate.suite import load_suites
from ray_jobs.command import job_parser, say
from ray_jobs.plan import dry_run
from ray_jobs.search import SearchResult, run_search
from serve_app import mlflow_client
from serve_app.console import run_command


def run_pipeline(settings: Settings, resume: str | None = None) -> tuple[SearchResult, Decision]:
    """Searches, then lets the best trial through the gate or not. Raises what ``run_search`` and the gate raise."""
    from gate import carry_out, promotion  # brings torch, for which --help and a refused config need not wait

    load_suites(settings.gate.behaviour_suites)  # a wrong path is told now, not when the search is over
    result = run_search(settings, resume)
    client = mlflow_client.connect(settings.tracking)
    for line in carry_out.repair(client):
        say(line)
    say("gate: scoring the best trial on the frozen test split")
    decision = promotion.promote(client, settings, run_id=result.parent_run_id)
    say(f"gate: {decision.decision}: {decision.reason}")
    return result, decision


def document(result: SearchResult, decision: Decision, seconds: float) -> dict[str, Any]:
    """The pipeline's JSON document."""
    promoted = decision.passed
    return {
        "decision": "promoted" if promoted else "blocked",
        "reason": decision.reason,
        "run_id": decision.run_id,
        "parent_run_id": result.parent_run_id,
        "f1": decision.f1,
        "baseline_f1": decision.baseline_f1,
        "model_name": decision.model_name,
        "model_version": decision.model_version if promoted else None,
        "production_version": decision.production_version,
        "decision_id": decision.decision_id,
        "search": result.name,
        "best_validation_f1": result.best.f1,
        "parameters": result.best.parameters,
        "trials": result.counts(),
        "seconds": round(seconds, 1),
    }


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = job_parser("python -m ray_jobs.pipeline", (__doc__ or "").split("\n")[0])
    parser.add_argument("--resume", metavar="NAME", help="go on with the search of this name")
    parser.add_argument("--dry-run", action="store_true", help="tell what the search would do, and start no trial")
    parser.add_argument("--blocked-ok", action="store_true", help="exit with 0 when the gate blocks")
    args = parser.parse_args(argv)

    def work() -> tuple[dict[str, Any], list[str], int]:
        started = time.monotonic()
        settings = load_settings(args.config, args.overrides)
        if args.dry_run:
            plan, lines = dry_run(settings, args.resume)
            gate = (
                f"then the gate: the F1 of production {settings.tracking.model_name}, or {settings.gate.minimum_f1:g} "
            )
            return plan, [*lines[:-1], f"{gate}while there is none", lines[-1]], ExitCode.OK
        result, decision = run_pipeline(settings, args.resume)
        code = ExitCode.OK if decision.passed or args.blocked_ok else ExitCode.BLOCKED
        found = document(result, decision, time.monotonic() - started)
        lines = [f"{found['decision']}: {decision.reason}", f"run {found['run_id']}, test F1 {found['f1']}"]
        return found, lines, code

    return run_command(work, as_json=args.json, json_file=args.json_file)


if __name__ == "__main__":
    sys.exit(main())
