"""The pictures of a search's report: Optuna's own where it has them, plotly for the rest.

All are drawn without colours of text and ground, which the page sets for its light and dark theme.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Sequence

import optuna
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from ray_jobs import objectives
from ray_jobs.history import Attempt, SearchHistory, TrialHistory, duration, short, short_names
from ray_jobs.tuning import distribution

# After Okabe and Ito, whose colours differ for the colour-blind too.
COLOURS = {
    "winner": "#e69f00",
    "finished": "#2f7fc1",
    "stopped_early": "#8b959f",
    "failed": "#d55e00",
    "killed": "#cc79a7",
    "running": "#009e73",
    "lost": "#d55e00",
}
_SAVED = "rgba(144,154,164,0.28)"
_WORSE_TO_BETTER = [[0.0, "#adb5bd"], [0.5, "#748ffc"], [1.0, "#e8590c"]]
_FEWEST_FOR_IMPORTANCE = 4


class NothingToDraw(ValueError):
    """The search has not what a picture shows; the message says what is missing."""


def best_so_far(search: SearchHistory) -> go.Figure:
    """Every reported epoch over time, and the best so far as steps."""
    points = sorted(
        (search.elapsed(epoch.time), epoch.f1, trial, epoch.number)
        for trial in search.trials
        for epoch in trial.epochs
        if math.isfinite(epoch.f1)
    )
    if not points:
        raise NothingToDraw("No trial reported an epoch.")
    scale, unit = _time_unit(search.seconds)
    times, best, highest = [], [], -math.inf
    for time, f1, trial, _ in points:
        if trial.outcome != "failed" and f1 > highest:
            highest = f1
            times.append(time / scale)
            best.append(f1)
    figure = go.Figure()
    figure.add_scatter(
        x=[point[0] / scale for point in points],
        y=[point[1] for point in points],
        mode="markers",
        marker={"color": COLOURS["stopped_early"], "size": 5, "opacity": 0.7},
        text=[f"trial {trial.number} ({trial.trial_id}), epoch {number}" for _, _, trial, number in points],
        hovertemplate="%{text}: F1 %{y:.4f}<extra></extra>",
        name="an epoch of a trial",
    )
    if times:
        figure.add_scatter(
            x=[*times, search.seconds / scale],
            y=[*best, best[-1]],
            mode="lines",
            line={"color": COLOURS["winner"], "width": 2.5, "shape": "hv"},
            hovertemplate="best so far: F1 %{y:.4f}<extra></extra>",
            name="best so far",
        )
    figure.update_xaxes(rangemode="tozero")
    return _finished(figure, x=f"{unit} since the first trial began", y="validation F1")


def importance(search: SearchHistory) -> go.Figure:
    """Optuna's PED-ANOVA: which parameters tell good trials from bad ones."""
    study = study_of(search)
    if len(study.trials) < _FEWEST_FOR_IMPORTANCE:
        raise NothingToDraw(f"It takes {_FEWEST_FOR_IMPORTANCE} trials with parameters and a result to tell. This "
                            f"search has {len(study.trials)}.")  # fmt: skip
    if len({trial.value for trial in study.trials}) == 1:
        raise NothingToDraw("All trials have the same F1, so no parameter made a difference.")
    figure = optuna.visualization.plot_param_importances(study)
    if any(not math.isfinite(share) for trace in figure.data for share in trace.x):
        raise NothingToDraw("The importance cannot be computed from these trials.")
    figure.update_traces(marker_color=COLOURS["finished"], cliponaxis=False)
    bars = figure.data[0]
    figure.update_xaxes(range=[0, 1.12 * max(bars.x)])
    return _finished(figure, x="share of what they explain", y="", height=150 + 36 * len(bars.x), legend=False)


def parallel_coordinates(search: SearchHistory) -> go.Figure:
    """Optuna's parallel coordinates: a line per trial, coloured by F1."""
    study = study_of(search)
    if len(study.trials) < 2:
        raise NothingToDraw(f"It takes 2 trials with parameters and a result to compare them. This search has "
                            f"{len(study.trials)}.")  # fmt: skip
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name="F1")
    # Optuna's colours are for a white page: the best lines would vanish on a dark one, the worst vanish on any.
    *lines, scale = figure.data
    for line in lines:
        goodness = line.y[0]  # the first axis is the F1, from 0 at its lowest to 1 at its highest
        line.line.color, line.line.width = sample_colorscale(_WORSE_TO_BETTER, goodness)[0], 1 + 1.5 * goodness
        line.opacity = 0.4 + 0.6 * goodness
    figure.data = [*sorted(lines, key=lambda line: line.y[0]), scale]
    scale.marker.colorscale = _WORSE_TO_BETTER
    scale.marker.colorbar.update(title=None, thickness=12, outlinewidth=0)
    figure.update_annotations(font_color=None, font_size=11)
    figure.update_shapes(line_color="rgba(140,150,160,0.6)")
    # A phone scrolls it: closer together the axes' numbers lie over each other.
    narrowest = {"min_width": 90 * (len(search.settings.search.space) + 2)}
    return _finished(figure, height=440, legend=False).update_layout(margin_l=52, meta=narrowest)


def learning_curves(search: SearchHistory) -> go.Figure:
    """Validation F1 by epoch, a line per trial; symbols mark the best epoch, and where trials ended early."""
    drawn = [trial for trial in search.trials if trial.epochs]
    if not drawn:
        raise NothingToDraw("No trial reported an epoch.")
    figure = go.Figure()
    named: set[str] = set()
    for trial in reversed(drawn):  # the winner on top
        kind = _kind(search, trial)
        marked = trial.best_epoch if kind == "winner" else trial.epochs[-1].number
        symbol = _SYMBOLS.get(kind)
        figure.add_scatter(
            x=[epoch.number for epoch in trial.epochs],
            y=[epoch.f1 for epoch in trial.epochs],
            mode="lines+markers",
            line={"color": COLOURS[kind], "width": 3.5 if kind == "winner" else 1.5},
            opacity=1.0 if kind == "winner" else 0.75,
            marker={
                "size": [
                    (14 if kind == "winner" else 9) if symbol and epoch.number == marked else 4
                    for epoch in trial.epochs
                ],
                "symbol": [symbol if symbol and epoch.number == marked else "circle" for epoch in trial.epochs],
            },
            name=_KIND_NAMES[kind],
            legendgroup=kind,
            legendrank=list(COLOURS).index(kind),
            showlegend=kind not in named,
            hovertemplate=f"{_describe(search, trial)}<br>epoch %{{x}}: F1 %{{y:.4f}}<extra></extra>",
        )
        named.add(kind)
    longest = max(epoch.number for trial in drawn for epoch in trial.epochs)
    figure.update_xaxes(range=[0.8, longest + 0.2], dtick=max(1, round(longest / 10)))
    return _finished(figure, x="epoch", y="validation F1", height=440)


def timeline(search: SearchHistory) -> go.Figure:
    """Trials over the slots of the cluster; a slot is a place for one trial at a time."""
    if not search.trials:
        raise NothingToDraw("No trial began.")
    scale, unit = _time_unit(search.seconds)
    bars: dict[str, list[tuple[TrialHistory, Attempt, str]]] = {kind: [] for kind in _KIND_NAMES}
    for trial in search.trials:
        for place, attempt in enumerate(trial.attempts, start=1):
            lost = place < len(trial.attempts)
            which = f"attempt {place} of {len(trial.attempts)}, " if len(trial.attempts) > 1 else ""
            took = which + duration(attempt.end - attempt.start)
            if lost:
                took += f"<br>lost: {_wrapped(attempt.error or 'the search was interrupted')}"
            bars["lost" if lost else _kind(search, trial)].append((trial, attempt, took))
    figure = go.Figure()
    for kind, drawn in bars.items():
        if drawn:
            figure.add_bar(
                base=[search.elapsed(attempt.start) / scale for _, attempt, _ in drawn],
                x=[(attempt.end - attempt.start) / scale for _, attempt, _ in drawn],
                y=[attempt.slot + 1 for _, attempt, _ in drawn],
                orientation="h",
                width=0.78,
                marker={
                    "color": COLOURS[kind],
                    "line": {"width": 1, "color": "rgba(255,255,255,0.55)"},
                    "pattern": {
                        "shape": "/" if kind == "lost" else "",
                        "size": 7,
                        "solidity": 0.2,
                        "fillmode": "overlay",
                        "fgcolor": "white",
                        "fgopacity": 0.7,
                    },
                },
                text=[str(trial.number) for trial, _, _ in drawn],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": "white", "size": 11},
                constraintext="inside",
                customdata=[f"{_describe(search, trial)}<br>{took}" for trial, _, took in drawn],
                hovertemplate="%{customdata}<extra></extra>",
                name=_KIND_NAMES[kind],
            )
    figure.update_layout(barmode="overlay", uniformtext={"minsize": 8, "mode": "hide"})
    figure.update_yaxes(
        tickvals=list(range(1, search.slots + 1)) if search.slots <= 20 else None,
        range=[search.slots + 0.6, 0.4],
        showgrid=False,
    )
    height = 170 + min(44 * search.slots, 600)
    return _finished(figure, x=f"{unit} since the first trial began", y="slot", height=height)


def cost(search: SearchHistory) -> go.Figure:
    """What each trial took, and what early stopping saved on it, in CPU- or GPU-time."""
    if not search.trials:
        raise NothingToDraw("No trial began.")
    resource, held = search.resource
    trials = search.by_start
    scale, unit = _time_unit(max(trial.seconds + trial.saved_seconds for trial in trials) * held)
    figure = go.Figure()
    for kind in COLOURS:
        of_kind = [trial for trial in trials if _kind(search, trial) == kind]
        if of_kind:
            figure.add_bar(
                x=[trial.number for trial in of_kind],
                y=[trial.seconds * held / scale for trial in of_kind],
                marker={"color": COLOURS[kind], "line": {"width": 0}},
                customdata=[_describe(search, trial) for trial in of_kind],
                hovertemplate=f"%{{customdata}}<br>%{{y:.2f}} {resource}-{unit}<extra></extra>",
                name=_KIND_NAMES[kind],
            )
    saved = [trial for trial in trials if trial.saved_seconds > 0]
    if saved:
        figure.add_bar(
            x=[trial.number for trial in saved],
            y=[trial.saved_seconds * held / scale for trial in saved],
            marker={"color": _SAVED, "line": {"width": 1, "color": COLOURS["stopped_early"]}},
            hovertemplate=f"saved by stopping: about %{{y:.2f}} {resource}-{unit}<extra></extra>",
            name="saved by stopping early",
        )
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(dtick=1 if len(trials) <= 24 else None, range=[0.3, len(trials) + 0.7])
    return _finished(figure, x="trial, in the order of their start", y=f"{resource}-{unit}")


def pareto_front(search: SearchHistory) -> go.Figure:
    """Optuna's picture of several objectives: what no other trial beats in everything, the rest, and the winner."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = search.settings.search
    names, directions = zip(*(objectives.GOALS[objective] for objective in settings.objectives), strict=True)
    rated = {trial.number: found for trial in search.by_start if (found := objectives.values(trial, settings))}
    if not rated:
        raise NothingToDraw("No trial has a value in every objective.")
    study = optuna.create_study(directions=["maximize" if way == "max" else "minimize" for way in directions])
    study.add_trials([optuna.create_trial(values=list(found)) for found in rated.values()])
    figure = optuna.visualization.plot_pareto_front(study, target_names=["validation F1", *names[1:]])
    hovers = [
        _describe(search, trial)
        + "".join(
            f"<br>{name}: {objectives.shown(name, value)}"
            for name, value in list(zip(names, rated[trial.number], strict=True))[1:]
        )
        for trial in search.by_start
        if trial.number in rated
    ]
    named = (("stopped_early", "another trial is better in everything"), ("finished", "on the front"))
    for trace, (kind, name) in zip(figure.data, named, strict=True):
        # Optuna names a point's trial, by its place in the study, in a text of its own.
        points = [hovers[int(place)] for place in re.findall(r'"number": (\d+)', "".join(trace.text or ()))]
        trace.update(marker=None, name=name, showlegend=True, text=points, hovertemplate="%{text}<extra></extra>")
        trace.update(marker={"color": COLOURS[kind], "size": 7})
    if search.winner is not None and search.winner.number in rated:
        point = dict(zip("xyz", rated[search.winner.number], strict=False))
        marker = {"color": COLOURS["winner"], "symbol": "star" if len(point) < 3 else "diamond", "size": 15}
        star = go.Scatter3d if len(point) == 3 else go.Scatter
        hover = hovers[list(rated).index(search.winner.number)] + "<extra></extra>"
        figure.add_trace(star(**{k: [v] for k, v in point.items()}, mode="markers", marker=marker, name="to the gate",
                              hovertemplate=hover))  # fmt: skip
    return _finished(figure, height=440)


# In the order of the page: title, what it shows, how it is drawn.
PICTURES: Sequence[tuple[str, str, Callable[[SearchHistory], go.Figure]]] = (
    (
        "Best so far",
        "Validation F1 of every epoch of every trial as it came in, and the best until then.",
        best_so_far,
    ),
    (
        "Which parameters mattered",
        "Optuna's PED-ANOVA: how much each parameter tells the better trials from the rest. A hint, not a proof: "
        "it is unsure with few trials.",
        importance,
    ),
    (
        "Parameters and F1",
        "A line is a trial, grey for a low F1 and orange for a high one. Where orange lines meet are the values that "
        "worked.",
        parallel_coordinates,
    ),
    (
        "Learning curves",
        "Validation F1 by epoch. The star is the winner's best epoch; a cross is where the scheduler stopped a trial, "
        "a triangle or a square where one failed or was killed.",
        learning_curves,
    ),
    (
        "Timeline",
        "A slot is a place for one trial at a time; gaps are start-up and waiting. A striped bar is an attempt that "
        "was lost, after which its trial went on. The pause between an interruption and going on is left out.",
        timeline,
    ),
    (
        "Cost",
        "A trial's time multiplied by what it held. Saved: the epochs that stopped trials did not run, at the mean of "
        "those they did.",
        cost,
    ),
)


_PARETO = (
    "Pareto front",
    "Trials by their objectives. A trial on the front is beaten in everything by no other; the star goes to the gate.",
    pareto_front,
)


def pictures_of(search: SearchHistory) -> Sequence[tuple[str, str, Callable[[SearchHistory], go.Figure]]]:
    """The pictures of this search."""
    return [_PARETO, *PICTURES] if len(search.settings.search.objectives) > 1 else PICTURES


def study_of(search: SearchHistory) -> optuna.Study:
    """The search as an Optuna study in memory: one complete trial for each with a result, in order of their start."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search.settings.search.space
    if not space:
        raise NothingToDraw("Nothing was searched: search.space is empty.")
    names = short_names(space)
    study = optuna.create_study(direction="maximize")
    for trial in search.by_start:
        given = {key: value for key, value in trial.parameters.items() if key in space}
        if trial.gave_model and given:
            study.add_trial(
                optuna.create_trial(
                    value=trial.f1,
                    params={names[key]: value for key, value in given.items()},
                    distributions={names[key]: distribution(space[key]) for key in given},
                )
            )
    return study


_KIND_NAMES = {
    "winner": "winner",
    "finished": "finished",
    "stopped_early": "stopped early",
    "failed": "failed",
    "killed": "killed",
    "running": "not ended",
    "lost": "lost attempt",
}
_SYMBOLS = {"winner": "star", "stopped_early": "x", "failed": "triangle-down", "killed": "square"}


def _kind(search: SearchHistory, trial: TrialHistory) -> str:
    return "winner" if trial is search.winner else trial.outcome


def _describe(search: SearchHistory, trial: TrialHistory) -> str:
    names = short_names(trial.parameters)
    values = "<br>".join(f"{names[key]}: {short(value)}" for key, value in sorted(trial.parameters.items()))
    f1 = f", best F1 {trial.f1:.4f}" if trial.f1 is not None else ""
    return f"<b>trial {trial.number}</b> ({trial.trial_id}), {_KIND_NAMES[_kind(search, trial)]}{f1}<br>{values}"


def _wrapped(text: str) -> str:
    return "<br>".join(textwrap.wrap(html.escape(text[:300]), 70))


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _finished(
    figure: go.Figure, x: str | None = None, y: str | None = None, height: int = 340, *, legend: bool = True
) -> go.Figure:
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin={"l": 10, "r": 10, "t": 40 if legend else 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13},
        showlegend=legend,
        # Above the picture, one entry per kind: it never lies over the lines, however many trials there are.
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True, zeroline=False, title_font_size=13)
    figure.update_yaxes(automargin=True, zeroline=False, title_font_size=13, title_standoff=12)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    return figure
