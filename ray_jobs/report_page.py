"""The page of a search's report: its words, its numbers, its table and its pictures, as one HTML document."""

from __future__ import annotations

import datetime
import html
from pathlib import Path
from string import Template
from typing import Any

from configs.model import ModelConfig
from configs.search import Choice, Dimension
from ray_jobs.command import say
from ray_jobs.history import SearchHistory, TrialHistory, duration, short, short_names

_TEMPLATE = Path(__file__).parent / "report_page.html"


def page(search: SearchHistory) -> str:
    """The whole report as one HTML document."""
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"Search {search.name}"),
        name=html.escape(search.name),
        headline=headline(search),
        tiles="".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in _tiles(search)),
        facts="".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in _facts(search)),
        pictures=_pictures(search),
        table=_table(search),
    )


def headline(search: SearchHistory) -> str:
    """The winner in one sentence, as HTML."""
    winner = search.winner
    if winner is None:
        reason = f": {html.escape(search.first_error[:300])}" if search.first_error else "."
        return f"None of the {len(search.trials)} trials gave a model{reason}"
    given = f" with {html.escape(_parameters(winner))}" if winner.parameters else ""
    if search.why is not None:
        return f"Trial {winner.number} goes to the gate{given}: {html.escape(search.why)}."
    return (
        f"Trial {winner.number} has the best validation F1, <b>{winner.f1:.4f}</b>, "
        f"after epoch {winner.best_epoch} of {winner.full_epochs}{given}."
    )


def _pictures(search: SearchHistory) -> str:
    # Only here: plotly and Optuna take a second to import, which no command but this one needs.
    from plotly.offline import get_plotlyjs

    from ray_jobs.figures import NothingToDraw, pictures_of

    parts = [f"<script>{get_plotlyjs()}</script>"]
    for title, caption, draw in pictures_of(search):
        try:
            figure = draw(search)
            drawn = figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                config={"displayModeBar": False, "responsive": True},
            )
            if figure.layout.meta:
                drawn = f'<div style="min-width:{figure.layout.meta["min_width"]}px">{drawn}</div>'
        except NothingToDraw as nothing:
            drawn = f'<p class="none">{html.escape(str(nothing))}</p>'
        except Exception as error:  # noqa: BLE001 - one picture must not cost the others
            say(f"the report's picture '{title}' could not be drawn: {type(error).__name__}: {error}")
            drawn = '<p class="none">This picture could not be drawn.</p>'
        parts.append(
            f'<section class="card"><h2>{title}</h2><p class="caption">{html.escape(caption)}</p>'
            f'<div class="scroll">{drawn}</div></section>'
        )
    return "\n".join(parts)


def _tiles(search: SearchHistory) -> list[tuple[str, str]]:
    resource, held = search.resource
    spent = sum(trial.seconds for trial in search.trials) * held
    saved = sum(trial.saved_seconds for trial in search.trials) * held
    share = f"{saved / (spent + saved):.0%}" if spent + saved else "0%"
    return [
        (f"{search.winner.f1:.4f}" if search.winner else "-", f"{'best ' if search.why is None else ''}validation F1"),
        (str(len(search.trials)), html.escape(counts(search, total=False) or "no trial began")),
        (duration(search.seconds), f"with {search.slots} trial{'s' if search.slots != 1 else ''} at a time"),
        (amount(spent), f"of {resource} time"),
        (share, f"saved by stopping early (about {amount(saved)})"),
    ]


def _facts(search: SearchHistory) -> list[tuple[str, str]]:
    settings = search.settings
    facts = [("Data", html.escape(data_source(search))), ("Model", html.escape(_model(settings.model)))]
    space = [f"{key} {_dimension(dimension)}" for key, dimension in sorted(settings.search.space.items())]
    facts.append(("Searched", "<br>".join(map(html.escape, space)) or "nothing"))
    facts.append(("By", f"sampler {settings.search.sampler}, scheduler {settings.search.scheduler}, up to "
                  f"{settings.training.epochs} epochs a trial"))  # fmt: skip
    if search.trials:
        began = datetime.datetime.fromtimestamp(search.by_start[0].attempts[0].start, datetime.UTC)
        facts.append(("Began", f"{began:%Y-%m-%d %H:%M} UTC"))
    winner = search.winner
    if winner is not None and winner.run_id is not None:
        facts.append(("Winner's run", f"<code>{winner.run_id}</code>"))
        facts.append(("Would it pass the gate", f"<code>{gate_command(winner.run_id)}</code>"))
    return facts


def _model(model: ModelConfig) -> str:
    if model.checkpoint is not None:
        return f"{model.family} {model.checkpoint}"
    assert model.sizes is not None
    sizes = ", ".join(f"{key} {value}" for key, value in model.sizes.model_dump(exclude_none=True).items())
    return f"{model.family} from scratch: {sizes}"


def _dimension(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(map(str, dimension.values))}"
    return f"{short(dimension.low)} to {short(dimension.high)}{' (log)' if dimension.type == 'loguniform' else ''}"


def _table(search: SearchHistory) -> str:
    from ray_jobs.figures import COLOURS

    parameters = short_names({key for trial in search.trials for key in trial.parameters})
    errors = any(trial.error for trial in search.trials)
    head = ["", "trial", "best F1", "at epoch", "epochs", "time", "outcome", *parameters.values()]
    head += ["error"] if errors else []
    rows = []
    for place, trial in enumerate(search.trials, start=1):
        kind = "winner" if trial is search.winner else trial.outcome
        cells = [
            _cell(place),
            _cell(f"{trial.number} ({trial.trial_id})", trial.number),
            _cell("-" if trial.f1 is None else f"{trial.f1:.4f}", trial.f1 or -1),
            _cell(trial.best_epoch or "-", trial.best_epoch),
            _cell(f"{trial.epochs[-1].number if trial.epochs else 0} of {trial.full_epochs}", len(trial.epochs)),
            _cell(duration(trial.seconds), trial.seconds),
            f'<td><span class="dot" style="background:{COLOURS[kind]}"></span>{trial.outcome.replace("_", " ")}</td>',
            *(_cell(short(trial.parameters.get(key, "")), trial.parameters.get(key, "")) for key in parameters),
        ]
        if errors:
            cells.append(f'<td class="error">{html.escape((trial.error or "")[:300])}</td>')
        rows.append(f"<tr{' class=winner' if kind == 'winner' else ''}>{''.join(cells)}</tr>")
    columns = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _cell(text: Any, value: Any = None) -> str:
    sort_by = html.escape(str(text if value is None else value), quote=True)
    return f'<td data-value="{sort_by}">{html.escape(str(text))}</td>'


def counts(search: SearchHistory, *, total: bool = True) -> str:
    """Trials by outcome in words, behind their ``total``."""
    parts = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in search.counts().items())
    return f"{len(search.trials)} ({parts})" if total else parts


def _parameters(trial: TrialHistory) -> str:
    names_ = short_names(trial.parameters)
    return ", ".join(f"{names_[key]} {short(value)}" for key, value in sorted(trial.parameters.items()))


def data_source(search: SearchHistory) -> str:
    """Where the texts came from."""
    data = search.settings.data
    where = data.hub_id or data.path or ", ".join(data.train or [])
    return f"{data.source} {where}".strip()


def gate_command(run_id: str) -> str:
    """The command that asks the gate about a run."""
    return f"python -m gate check --run-id {run_id}"


def amount(seconds: float) -> str:
    """CPU- or GPU-time for people."""
    return f"{seconds / 3600:.1f} h" if seconds >= 36_000 else duration(seconds)
