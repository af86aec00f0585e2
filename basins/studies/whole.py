"""Every experiment on one model and text: what is done already is kept, what is shared is computed once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basins.errors import BasinsError
from basins.experiment_runs import ready, write
from basins.experiments.loaded import NamedModel, load_models
from basins.experiments.primary import SCORER
from basins.experiments.score_store import ScoreStore
from basins.runs import MANIFEST, check_pictures
from basins.studies.grades import overall
from basins.studies.hypotheses import hypotheses
from basins.studies.parts import NAMES, Part, PartResult, Shared, choose_parts
from basins.studies.plan import make_plan, start_or_resume
from basins.studies.written import write_study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Study:
    """What was found. `hypotheses`: a row for everything tested; `parts`: each experiment's folder and tables.

    `grade` is the study's by the rules in `plan["grades"]`, `why` says which rule. Everything lies in `folder` too.
    """

    folder: Path
    hypotheses: pd.DataFrame
    grade: str
    why: str
    parts: Mapping[str, PartResult] = field(repr=False)
    plan: dict[str, Any] = field(repr=False)
    seconds: float

    def __str__(self) -> str:
        shown = self.hypotheses.drop(columns=["low", "high"]).round(3)
        return f"Study: {self.grade}: {self.why}\n{shown.to_string(index=False)}\n{self.folder / 'analysis.md'}"

    __repr__ = __str__


def study(
    model: Any = "pocket",
    *,
    second_model: Any = "auto",
    out: str | Path = "runs/study",
    texts: list[str] | str | None = None,
    parts: list[str] | None = None,
    limit: int | None = None,
    max_length: int = 128,
    layers: Any = None,
    k: int = SCORER["k"],
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    pictures: bool = True,
    command: str | None = None,
    tell: Callable[[str], object] | None = None,
) -> Study:
    """Run all experiments over shared scores and write one folder: tables, statistics, figures, `analysis.md`.

    Interrupted and called again with the same settings, it goes on where it was: parts that are whole are kept, and so
    are the scores of the one that was interrupted.

    Args:
        model, second_model: as in `basins.experiments.importance`.
        out: the folder; one that holds the same study is taken up again.
        texts: of the parts that take any text: a list, or what `basins.corpus.read_texts` takes; None: the shipped
            book. limit, max_length: only the first texts, cut into rows of so many tokens.
        parts: names of experiments; None: all of them.
        layers: transitions of the first model; None: all.
        k: neighbours a token. seed: of every random choice; the same seed gives the same tables.
        options: more settings for single parts, {"importance": {"methods": ["gradient"]}}.
        pictures: whether to draw. command: the command line, for the record.
        tell: called with a line of text when a part starts and ends; `print` in a notebook.

    Raises BasinsError where the folder holds another study, or a part refuses its settings; what can be told beforehand
    (tags that NLTK cannot give, say) before anything runs.
    """
    chosen = choose_parts(parts)
    given = {name: dict(values) for name, values in (options or {}).items()}
    unknown = sorted(set(given) - {part.name for part in chosen})
    if unknown:
        raise BasinsError(f"options names {unknown}, which are not run. Possible: {', '.join(NAMES)}.")
    if pictures:
        check_pictures()
    start = time.monotonic()
    folder = Path(out)
    loaded = [NamedModel(name, one) for name, one in load_models(model, second_model).items()]
    shared = Shared(
        loaded[0],
        loaded[1] if len(loaded) > 1 else None,
        texts,
        limit,
        max_length,
        layers,
        k,
        seed,
        ScoreStore(folder / "scores"),
    )
    for part in chosen:
        if not (folder / part.name / MANIFEST).is_file():
            part.check(shared, given.get(part.name, {}))
    plan = start_or_resume(folder, make_plan(shared, chosen, given, SCORER | {"k": k}))
    results: dict[str, PartResult] = {}
    for number, part in enumerate(chosen, 1):
        say = tell or (lambda line: None)
        say(f"{number} of {len(chosen)}: {part.name}. {part.title}")
        result = _one(part, shared, folder, given.get(part.name, {}), list(results.values()), pictures)
        results[part.name] = result
        before = "done before" if result.drawn or not pictures else "done before, without pictures"
        done = before if result.resumed else f"{result.manifest['seconds']:.0f} s"
        say(f"    {result.manifest['grade']} ({done}): {result.folder}")
    table = hypotheses(list(results.values()))
    grade, why = overall(table)
    seconds = round(time.monotonic() - start, 1)
    found = Study(folder, table, grade, why, results, plan, seconds)
    write_study(found, pictures=pictures, command=command)
    return found


def _one(
    part: Part, shared: Shared, folder: Path, options: dict[str, Any], before: list[PartResult], pictures: bool
) -> PartResult:
    place = folder / part.name
    resumed = (place / MANIFEST).is_file()
    if not resumed:
        ready(part.name, place, pictures)
        start = time.monotonic()
        found = part.run(shared, options, before)
        write(found, place, pictures=pictures, seconds=round(time.monotonic() - start, 1))
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    return PartResult(part, place, manifest, resumed)
