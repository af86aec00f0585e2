"""`analysis.md`: a study in words, for somebody who has not seen the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from basins.experiment_runs import markdown_table
from basins.studies.hypotheses import FLAGS

if TYPE_CHECKING:
    from basins.studies.parts import PartResult
    from basins.studies.whole import Study

METHOD = """\
At every layer each token has a state: its vector in the model's residual stream. For every token the {k} nearest states
of other sequences are taken, each is put into the token's place, and the next block of the model is really run on it in
the token's own context. The *relative score* is ln(V_in / V_out) in nats, V the variance of these states before and
after the block: above 0 the block brings them together (compression), below 0 it drives them apart. It is the primary
measure everywhere. The *raw score*, -ln V_out, is in every table too, but mostly repeats how dense the states lay
before the block (-ln V_in); so density is a confound in every part and the raw score is never evidence for what a block
does. The *lookup* scores take the outputs that the {k} states had in their own contexts, without running anything.

r is a correlation between -1 and 1; where a part names confounds, of what is left when they are removed. Intervals
(95%) know that tokens of one sequence are not independent. p is corrected for everything that a part tests. "null" says
whether the same effect was looked for where there is nothing to find, and whether it was there."""


def analysis(found: Study, figures: list[str], command: str | None) -> str:
    """The whole page."""
    plan = found.plan
    models = ", ".join(f"{name} ({about['layers']} layers)" for name, about in plan["models"].items())
    lines = [f"# What compression shows in {next(iter(plan['models']))}", ""]
    lines += [f"**Overall: {found.grade}.** {found.why[0].upper()}{found.why[1:]}", ""]
    lines += _section("What was asked", [f"- {title}" for title in plan["parts"].values()])
    lines += _section("What was done", [METHOD.format(k=plan["k"]), "", *_counts(found, models)])
    lines += _section("Stated before the run", _stated(found))
    lines += _section("What was found", _findings(found, figures))
    for part in found.parts.values():
        lines += _section(part.part.title, _part(part, figures))
    lines += _section("What speaks against it", _against(found))
    lines += _section("Where everything is", _files(found, command))
    return "\n".join(lines)


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _counts(found: Study, models: str) -> list[str]:
    lines = [f"Models: {models}. Seed {found.plan['seed']}. Each part in numbers:", ""]
    for name, part in found.parts.items():
        # Robustness looks at its second model once, and says nothing more of it.
        counts = [
            f"{model}: {n:,} tokens"
            for model, about in part.manifest["models"].items()
            if (n := about.get("tokens", about.get("tokens_scored")))
        ]
        lines.append(f"- {name}: {'; '.join(counts)}; {_what(part)}")
    return lines


def _what(part: PartResult) -> str:
    primary = part.manifest["primary"]
    return f"primary analysis: {primary}."


def _stated(found: Study) -> list[str]:
    date = found.plan["date"].replace("T", " ")
    lines = [f"In `study.json`, written before anything ran ({date}). The study's grade:", ""]
    rules, _, counting = found.plan["grades"].partition(". ")
    lines += [f"- {rule.strip()}" for rule in rules.split("; ")]
    lines += ["", f"{counting}."]
    lines += ["", "The parts' grades:", ""]
    lines += [f"- {name}: {thresholds}" for name, thresholds in found.plan["thresholds"].items()]
    return lines


def _findings(found: Study, figures: list[str]) -> list[str]:
    shown = found.hypotheses.copy()
    ends = zip(shown["low"], shown["high"], strict=True)
    shown["95% interval"] = [f"{low:.2f} to {high:.2f}" if low == low else "-" for low, high in ends]
    columns = ["part", "name", "grade", "layer", "r", "95% interval", "p_corrected", "second_model", "null", "flags"]
    lines = [markdown_table(shown[columns]), ""]
    if figures:
        lines += [_picture(figures[0], "The main result of each part across the layers"), ""]
    return lines[:-1]


def _part(part: PartResult, figures: list[str]) -> list[str]:
    lines = [f"**{part.manifest['grade']}.** {part.manifest['reading']}", ""]
    own = [figure for figure in figures if figure.split("_")[1] == part.part.name]
    for figure in own:
        lines += [_picture(figure, figure.split("_", 2)[2].replace("_", " ")), ""]
    if not own:
        lines += ["It was run without pictures, so it has no figures.", ""]
    return [*lines, f"All tables, figures and the token page: [{part.part.name}/]({part.part.name}/verdict.md)"]


def _picture(figure: str, says: str) -> str:
    return f"![{says}](figures/{figure}.png)"


def _against(found: Study) -> list[str]:
    lines = []
    for flag in dict.fromkeys(f for flags in found.hypotheses["flags"] for f in flags.split("; ") if f):
        rows = found.hypotheses[found.hypotheses["flags"].str.contains(flag, regex=False)]
        meaning = f" ({FLAGS[flag]})" if flag in FLAGS else ""
        lines.append(f"- **{flag}**{meaning}: {', '.join(rows['name'])}.")
    if len(found.plan["models"]) < 2:
        lines.append("- **one model**: nothing was replicated, so nothing can be called strong.")
    return lines or ["No red flag applies to any hypothesis."]


def _files(found: Study, command: str | None) -> list[str]:
    lines = [f"- `{name}/`: {part.manifest['question']}" for name, part in found.parts.items()]
    lines.append("- `tables/hypotheses.csv`, `statistics.json`: the table above for a program")
    lines.append("- `study.json`: every setting and threshold; `scores/`: shared scores, which may be deleted")
    if command is not None:
        lines += ["", f"Made by `{command}`."]
    return lines
