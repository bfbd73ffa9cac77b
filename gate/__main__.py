"""The gate on the command line: ``python -m gate check|promote|rollback|status|history|prune|card|replay``.

Exit codes: 0 done, 2 bad usage or no such run, version or model, 3 blocked, 4 MLflow cannot be reached, 130
interrupted, 1 a bug.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from configs.exit_codes import EXIT_CODES, ExitCode
from configs.loading import ConfigError, describe_validation_error, load_settings
from configs.schema import Settings, TrackingConfig
from gate.behaviour import behaviour_lines
from gate.decision import Decision, GateUsageError
from serve_app.console import run_command
from serve_app.mlflow_client import PRODUCTION, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = tuple[dict[str, Any], list[str], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    commands = {"check": _check, "promote": _promote, "rollback": _rollback, "status": _status, "history": _history,
                "prune": _prune, "card": _card, "replay": _replay}  # fmt: skip

    def work() -> Result:
        document, lines, code = commands[arguments.command](arguments)
        if code == ExitCode.BLOCKED and arguments.blocked_ok:
            code = ExitCode.OK
        return document, lines, code

    return run_command(work, as_json=arguments.json, json_file=arguments.json_file)


def _check(arguments: argparse.Namespace) -> Result:
    from gate import promotion

    client, candidate, settings = _candidate(arguments)
    return _decided(promotion.check(client, settings, candidate=candidate))


def _promote(arguments: argparse.Namespace) -> Result:
    if arguments.force and not (arguments.reason or "").strip():
        raise GateUsageError("--force needs a reason for the record: add --reason TEXT")
    from gate import promotion

    client, candidate, settings = _candidate(arguments)
    return _decided(promotion.promote(client, settings, candidate=candidate, alias=arguments.alias,
                                      force=arguments.force, reason=arguments.reason))  # fmt: skip


def _rollback(arguments: argparse.Namespace) -> Result:
    from gate import promotion

    client, settings = _connected(arguments)
    name = _model_name(client, settings, arguments.model_name)
    return _decided(promotion.rollback(client, name, arguments.to, arguments.reason, only_from=arguments.only_from))


def _status(arguments: argparse.Namespace) -> Result:
    from gate import promotion

    client, settings = _connected(arguments)
    name = _model_name(client, settings, arguments.model_name)
    document = promotion.status(client, name)
    production, previous, challenger = (document[alias] for alias in ("production", "previous", "challenger"))
    lines = [f"model       {name}"]
    if production is None:
        lines.append("production  none yet")
    else:
        f1 = "unknown F1" if production["f1"] is None else f"F1 {production['f1']:.4f}"
        lines.append(
            f"production  version {production['version']}, {f1}, since {production['production_since']}, "
            f"run {production['run_id']}"
        )
    lines.append(f"previous    {'none' if previous is None else 'version ' + previous['version']}")
    if challenger is not None:
        f1 = "unknown F1" if challenger["f1"] is None else f"F1 {challenger['f1']:.4f}"
        lines.append(f"challenger  version {challenger['version']}, {f1}, run {challenger['run_id']}")
    return document, lines + _table(document["decisions"]), ExitCode.OK


def _prune(arguments: argparse.Namespace) -> Result:
    from gate.prune import prune

    client, settings = _connected(arguments)
    name = _model_name(client, settings, arguments.model_name)
    return _decided(prune(client, name, arguments.keep, dry_run=arguments.dry_run))


def _card(arguments: argparse.Namespace) -> Result:
    from gate import registry
    from gate.card_facts import gather_card
    from gate.model_card import card_html, card_markdown

    client, settings = _connected(arguments)
    name = _model_name(client, settings, arguments.model_name)
    version = arguments.version
    if version is None:
        production = registry.aliased(client, name, PRODUCTION)
        if production is None:
            raise GateUsageError(f"model '{name}' has no version in production: name one with --version N")
        version = str(production.version)
    card = gather_card(client, name, version)
    text = card_html(card) if arguments.html else card_markdown(card)
    if arguments.output is None:
        return card.model_dump(mode="json"), text.splitlines(), ExitCode.OK
    _write("--output", arguments.output, text)
    return card.model_dump(mode="json"), [f"{card.title}: {arguments.output}"], ExitCode.OK


def _history(arguments: argparse.Namespace) -> Result:
    from gate import audit

    client, settings = _connected(arguments)
    name = _model_name(client, settings, arguments.model_name)
    decisions = audit.history(client, name)
    lines = _table(decisions) or [f"no decisions about model {name} yet"]
    return {"model_name": name, "decisions": decisions}, lines, ExitCode.OK


def _replay(arguments: argparse.Namespace) -> Result:
    from gate.decision_page import decision_page
    from gate.replay import read_decision, replay

    decision = read_decision(arguments.decision)
    found = replay(decision)
    if arguments.html is not None:
        _write("--html", arguments.html, decision_page(decision, found.differences))
    lines = [f"recorded    {found.recorded}", f"recomputed  {found.recomputed or 'nothing'}"]
    lines += [f"  {line}" for line in found.differences]
    if found.agrees is None:
        lines.append(f"nothing to compute: a {decision.action} applies no rule")
    elif found.agrees:
        lines.append("the decision follows from its evidence")
    lines += [f"taken as recorded: {line}" for line in found.taken]
    return found.model_dump(mode="json"), lines, ExitCode.FAILED if found.differences else ExitCode.OK


def _write(option: str, file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise GateUsageError(f"{option} {file} cannot be written: {error}") from None


def _connected(arguments: argparse.Namespace) -> tuple[MlflowClient, Settings]:
    settings = load_settings(arguments.config, arguments.set)
    if arguments.model_name is not None:
        settings.tracking = _named(settings.tracking, arguments.model_name)
    return connect(settings.tracking), settings


def _named(tracking: TrackingConfig, name: str) -> TrackingConfig:
    try:
        return TrackingConfig.model_validate({**tracking.model_dump(), "model_name": name})
    except ValidationError as error:
        raise ConfigError(f"--model-name: {describe_validation_error(error)}") from None


def _candidate(arguments: argparse.Namespace) -> tuple[MlflowClient, Any, Settings]:
    """The candidate and the settings to judge it by: its search's, with the command line's on top."""
    from gate.candidates import find_candidate

    client, settings = _connected(arguments)
    if arguments.run_id is not None:
        candidate = find_candidate(client, run_id=arguments.run_id)
        effective = candidate.effective_settings(arguments.config, arguments.set)
    else:
        name = _model_name(client, settings, arguments.model_name)
        candidate = find_candidate(client, version=arguments.version, model_name=name)
        effective = candidate.effective_settings(arguments.config, arguments.set)
        effective.tracking = _named(effective.tracking, name)
    if arguments.model_name is not None:
        effective.tracking = _named(effective.tracking, arguments.model_name)
    return client, candidate, effective


def _model_name(client: MlflowClient, settings: Settings, flag: str | None) -> str:
    """The model that is meant: named by flag or settings, else the only one there is.

    A name that nothing is known of is refused, unless nothing is known of any: then the first one is yet to come.
    """
    from gate import audit, registry

    wanted = flag or settings.tracking.model_name
    if registry.find_model(client, wanted) is not None:
        return wanted
    registered = registry.model_names(client)
    default = TrackingConfig().model_name
    if flag is None and wanted == default and len(registered) == 1:
        return registered[0]
    known = sorted({*registered, *audit.known_names(client)})
    if wanted in known or (not known and flag is None):
        return wanted
    there = f"there are: {', '.join(known)}" if known else "no model is registered yet"
    raise GateUsageError(f"model '{wanted}' does not exist; {there}. Name one with --model-name or tracking.model_name")


def _decided(decision: Decision) -> Result:
    document = decision.model_dump(mode="json")
    version = decision.model_version
    heading = {
        "would_promote": "would be promoted",
        "promoted": f"promoted: version {version} of {decision.model_name} is {decision.alias}",
        "forced": f"promoted by force: version {version} of {decision.model_name} is {decision.alias}",
        "rolled_back": f"rolled back: version {version} of {decision.model_name} is production",
        "blocked": "blocked",
        "would_prune": f"would be pruned from {decision.model_name}: {_counted(decision.versions)}",
        "pruned": f"pruned from {decision.model_name}: {_counted(decision.versions)}",
    }[decision.decision]
    if decision.action == "prune" and not decision.versions:
        heading = f"nothing to prune from {decision.model_name}"
    lines = [heading, f"  {decision.reason}"]
    for check in decision.checks:
        blocking = "ok" if check.passed else "overridden" if check.forced else "failed"
        mark = blocking if check.blocking else "info"
        lines.append(f"  [{mark}] {check.name}: {check.message}")
    if decision.evidence and decision.evidence.behaviour:
        minima = decision.policy.min_behaviour if decision.policy else {}
        lines += [f"  {line}" for line in behaviour_lines(decision.evidence.behaviour, minima)]
    if decision.decision_id:
        lines.append(f"  recorded as run {decision.decision_id}")
    return document, lines, decision.exit_code


def _counted(versions: Sequence[str]) -> str:
    return f"{len(versions)} version{'' if len(versions) == 1 else 's'}"


def _table(decisions: list[dict[str, Any]]) -> list[str]:
    """Decisions as lines, newest first."""
    rows = []
    for entry in decisions:
        f1, baseline = (("-" if entry[key] is None else f"{entry[key]:.4f}") for key in ("f1", "baseline_f1"))
        when, version = (entry["decided_at"] or "")[:19], entry["model_version"] or "-"
        outcome = entry["decision"] + (" challenger" if entry["alias"] == "challenger" else "")
        rows.append(
            f"{when:19}  {outcome:11}  version {version:>4}  F1 {f1} against {baseline}  "
            f"{entry['decided_by'] or '-'}  {'(run deleted) ' if entry['deleted'] else ''}{entry['reason'] or ''}"
        )
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gate", description="Decides which model is in production.", epilog=EXIT_CODES
    )
    parser.set_defaults(blocked_ok=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, does: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", epilog=EXIT_CODES)

    check = add("check", "the decision, without acting on it")
    promote = add("promote", "decide, register if need be, and promote")
    for command in (check, promote):
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("--run-id", metavar="R", help="a trial's run, or a search's (then its best trial)")
        which.add_argument("--version", metavar="N", help="a registered version")
    promote.add_argument("--as", dest="alias", choices=("production", "challenger"), default="production",
                         help="challenger: passes the same gate, and waits beside production")  # fmt: skip
    promote.add_argument("--force", action="store_true", help="promote against the verdict; needs --reason")
    promote.add_argument("--reason", metavar="TEXT", help="recorded with the decision")
    rollback = add("rollback", "production goes back to an earlier version")
    rollback.add_argument("--to", metavar="N", help="the version to go back to; default: the previous one")
    rollback.add_argument("--only-from", metavar="N", help="block (3) unless production is version N, for programs")
    rollback.add_argument("--reason", metavar="TEXT", help="recorded with the decision")
    status = add("status", "what is in production, and the decisions")
    history = add("history", "every decision, newest first")
    replay = add("replay", "computes a recorded decision again from what it rests on; 1 if it does not agree")
    replay.add_argument("decision", metavar="DECISION.json", help="path or URL of a decision's document")
    replay.add_argument("--html", metavar="FILE", help="write the decision's page there, with whatever does not agree")
    prune = add("prune", "remove old versions that carry no alias")
    prune.add_argument("--keep", metavar="N", type=int, required=True, help="the newest N versions stay, count")
    prune.add_argument("--dry-run", action="store_true", help="tell which versions that are, and remove none")
    card = add("card", "a version's model card: what it is, how good, where it fails, how to call it")
    card.add_argument("--version", metavar="N", help="the registered version; default: the one in production")
    card.add_argument("--html", action="store_true", help="as HTML instead of Markdown")
    card.add_argument("--output", metavar="FILE", help="write it there instead of printing it")
    for command in (check, promote, rollback, status, history, prune, card):
        command.add_argument("--model-name", metavar="NAME", help="the registered model; default: tracking.model_name")
        command.add_argument("--config", metavar="FILE", help="settings: bare name, path or URL")
        command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; repeatable")
    for command in (check, promote, rollback, status, history, prune, card, replay):
        command.add_argument("--json", action="store_true", help="print exactly one JSON document")
        command.add_argument("--json-file", metavar="PATH_OR_URL", help="write that document there")
    for command in (check, promote, rollback):  # the others decide nothing that could be blocked
        command.add_argument("--blocked-ok", action="store_true", help="exit 0 when blocked")
    return parser


if __name__ == "__main__":
    sys.exit(main())
