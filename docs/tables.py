"""The README's tables of the experiments, from what their commands wrote.

    basins study --model pocket --second-model pocket-mini --out runs/study
    basins experiment memorization --model SmolLM2-135M-Instruct.Q4_1.gguf --layers 4,9,14,19,24,29 \
        --plain en_ewt-ud-test.conllu --out runs/natural
    basins study --model SmolLM2-135M-Instruct.Q4_1.gguf --input wikitext:test.txt --limit 125 \
        --layers 0,5,10,15,20,25,29 --out runs/smollm2
    python docs/tables.py --copy runs/study study --copy runs/study/importance importance \
        --copy runs/study/memorization planted --copy runs/study/linguistic linguistic \
        --copy runs/study/layers layers --copy runs/study/robustness robustness --copy runs/natural natural \
        --copy runs/smollm2 smollm2

copies the tables into docs/experiments/ and prints them as Markdown; without --copy it prints only.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from basins.experiments.memorization_summary import NEIGHBORHOOD, best_layers

HERE = Path(__file__).parent / "experiments"
MODELS = ("pocket", "pocket-mini")
KEPT = (
    *("agreement", "hypotheses", "nulls", "doses", "dose_response", "tests", "added", "labels", "verdicts", "blind"),
    *("profile", "correlations", "dimension", "overlap", "shares"),
)
# Large, and nothing of them is shown.
NOT_KEPT = {"importance": ("correlations",)}
QUANTITIES = {"relative": "relative, re-run", "relative, lookup": "relative, lookup", "update": "update, re-run"}
LOSSES = ("loss", "perplexity", "min_k", "min_k_plus_plus", "zlib", "reference_difference", "reference_ratio")
SCORES = {
    "relative_mean": "relative, re-run",
    "lookup_relative_mean": "relative, lookup",
    "update_mean": "update, re-run",
    "raw_mean": "raw, re-run",
    "density_mean": "density before the block",
}


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, ruler, *rows])


def number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"


def read(run: str, table: str) -> Any:
    return pd.read_parquet(HERE / run / f"{table}.parquet")


def study_table(run: str = "study") -> str:
    """Everything that the study tested, but for what only describes the scores."""
    rows = []
    for row in read(run, "hypotheses").to_dict("records"):
        if row["null"] == "about the scores":
            continue
        interval = f"{number(row['r'])} [{number(row['low'])}, {number(row['high'])}]"
        layer = "-" if pd.isna(row["layer"]) else int(row["layer"])
        nulls = row["nulls_that_show_it"].replace("; ", ", ") or {"does not show it": "none"}.get(
            row["null"], row["null"]
        )
        rows.append([row["part"], row["name"], row["grade"], layer, interval, row["second_model"], nulls])
    return markdown(["part", "hypothesis", "grade", "layer", "r", "second model", "nulls that show it"], rows)


def smollm2_table() -> str:
    return study_table("smollm2")


def importance_table() -> str:
    verdicts = read("importance", "verdicts")
    agreement = read("importance", "agreement").groupby(["model", "method"])["rho"].mean()
    rows = []
    for row in verdicts.to_dict("records"):
        interval = f"{number(row['partial'])} [{number(row['low'])}, {number(row['high'])}]"
        cells = [row["grade"], row["layer"], interval, f"{row['p_corrected']:.2g}", "yes" if row["halves"] else "no"]
        truth = [number(agreement.get((model, row["method"]), float("nan"))) for model in MODELS]
        rows.append([row["method"], *cells, row["second_model"], *truth])
    header = ["measure", "grade", "layer", "partial rank correlation", "corrected p", "both halves", "second model"]
    return markdown([*header, *[f"agrees with ablation, {model}" for model in MODELS]], rows)


def dose_table() -> str:
    doses = read("planted", "doses").set_index(["model", "dose"])
    header = ["dose"]
    for model in MODELS:
        header += [f"{model}: recited", "first choices", "loss"]
    rows = []
    for dose in sorted(set(doses.index.get_level_values("dose"))):
        cells = [doses.loc[(model, dose), name] for model in MODELS for name in ("free", "forced_match", "loss")]
        rows.append([dose, *map(number, cells)])
    return markdown(header, rows)


def response_table() -> str:
    found = read("planted", "dose_response")
    found = found[found["model"] == "pocket"].set_index(["measure", "layer"])["rho"]
    layers = range(8)
    rows = [[name, *[number(found[measure, layer]) for layer in layers]] for measure, name in SCORES.items()]
    return markdown(["pocket: rank correlation of dose with", *[f"layer {layer}" for layer in layers]], rows)


def baseline_table() -> str:
    """AUROC of each baseline, and of each measure with layers at the layer where it is furthest from 0.5."""
    tests = read("planted", "tests")
    best = best_layers(tests)
    columns = [(m, c) for m in MODELS for c in tests["contrast"].unique()]
    rows = []
    for name in (*LOSSES, *NEIGHBORHOOD, *SCORES):
        cells = []
        for model, contrast in columns:
            table = tests[tests["layer"].isna()] if name in LOSSES else best
            row = table[(table["model"] == model) & (table["contrast"] == contrast) & (table["measure"] == name)]
            layer = "" if name in LOSSES or row.empty else f" (layer {int(row['layer'].item())})"
            cells.append(number(row["auroc"].item() if len(row) else float("nan")) + layer)
        rows.append([SCORES.get(name, name), *cells])
    return markdown(["AUROC", *[f"{model}: {contrast}" for model, contrast in columns]], rows)


def natural_table() -> str:
    labels = read("natural", "labels")
    labels = labels[labels["excluded"].isna()]
    rows = []
    for group, part in labels.groupby("group", sort=False):
        counts = [int(part[kind].sum()) for kind in ("free", "forced", "run")]
        rows.append([group, len(part), *counts, number(part["forced_match"].mean()), number(part["loss"].mean())])
    return markdown(["SmolLM2-135M", "passages", "free", "forced", "run", "first choices", "loss"], rows)


def contrast_table() -> str:
    tests = read("natural", "tests")
    added, blind = read("natural", "added"), read("natural", "blind").set_index("contrast")
    best = best_layers(tests)
    rows = []
    for contrast in tests["contrast"].unique():
        loss = tests[(tests["contrast"] == contrast) & (tests["name"] == "loss")].iloc[0]
        cells = [f"{int(loss['n_positive'])} / {int(loss['n_negative'])}", number(loss["auroc"])]
        for measure in ("relative_mean", "raw_mean", "density_mean"):
            row = best[(best["contrast"] == contrast) & (best["measure"] == measure)]
            cells.append(number(row["auroc"].item()) + f" (layer {int(row['layer'].item())})" if len(row) else "-")
        add = added[
            (added["contrast"] == contrast) & (added["name"] == "compression adds") & (added["sample"] == "all")
        ]
        low, high = add["low"].item(), add["high"].item()
        cells.append(f"{add['estimate'].item():+.2f} [{low:+.2f}, {high:+.2f}]" if not pd.isna(low) else "-")
        rows.append([contrast, *cells, number(blind.loc[contrast, "auroc"])])
    header = ["AUROC", "n", "loss", "relative, re-run", "raw", "density", "compression adds", "words alone"]
    return markdown(header, rows)


def linguistic_table() -> str:
    rows = []
    for row in read("linguistic", "verdicts").to_dict("records"):
        left = f"{number(row['r'])} [{number(row['low'])}, {number(row['high'])}]"
        layer = "-" if pd.isna(row["layer"]) else int(row["layer"])
        rows.append([row["name"], layer, number(row["r_plain"]), number(row["r_density"]), left, row["second_model"]])
    header = ["pocket: correlation with the relative score", "layer", "as it is", "density removed"]
    return markdown([*header, "all confounds removed", "second model"], rows)


def layers_table() -> str:
    """The first model's layers as columns; means over tokens, nats."""
    profile, raw = read("layers", "profile"), read("layers", "correlations")
    parts = {name: _by_layer(profile, "quantity", key, "mean") for key, name in QUANTITIES.items()}
    raw = raw[raw["with"] == "density"]
    parts["raw, rank correlation with density"] = _by_layer(raw, "score", "raw", "rho")
    parts["relative, rank correlation with density"] = _by_layer(raw, "score", "relative", "rho")
    parts["intrinsic dimension (two-NN)"] = _by_layer(read("layers", "dimension"), "estimator", "two-NN", "dimension")
    overlap = read("layers", "overlap")
    parts["neighbours shared with the next layer"] = _by_layer(overlap, "comparison", "next layer", "estimate")
    for part in ("state", "context", "interaction"):
        parts[f"share of {part}"] = _by_layer(read("layers", "shares"), "part", part, "share")
    layers = sorted(set().union(*parts.values()))
    rows = [[name, *[number(cells.get(layer, float("nan"))) for layer in layers]] for name, cells in parts.items()]
    return markdown(["pocket", *[f"layer {layer}" for layer in layers]], rows)


def _by_layer(table: Any, column: str, value: str, shown: str) -> dict[int, float]:
    rows = table[(table["model"] == MODELS[0]) & (table[column] == value)]
    return {int(layer): float(number) for layer, number in zip(rows["layer"], rows[shown], strict=True)}


def null_table() -> str:
    [judged] = read("robustness", "verdicts").to_dict("records")
    own = f"{number(judged['r'])} [{number(judged['low'])}, {number(judged['high'])}]"
    rows = [["as it is", own, "", ""]]
    for row in read("robustness", "nulls").to_dict("records"):
        interval = f"{number(row['effect'])} [{number(row['low'])}, {number(row['high'])}]"
        rows.append([row["null"], interval, number(row["spread_of_default"]), "yes" if row["shows"] else "no"])
    header = [f"{judged['name']}, layer {int(judged['layer'])}", "r", "spread of scores, of the model's own"]
    return markdown([*header, "shows it too"], rows)


TABLES = (
    study_table,
    smollm2_table,
    importance_table,
    dose_table,
    response_table,
    baseline_table,
    natural_table,
    contrast_table,
    linguistic_table,
    layers_table,
    null_table,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy", nargs=2, action="append", default=[], metavar=("FOLDER", "NAME"))
    for folder, name in parser.parse_args().copy:
        (HERE / name).mkdir(parents=True, exist_ok=True)
        for table in KEPT:
            source = Path(folder) / "tables" / f"{table}.parquet"
            if source.is_file() and table not in NOT_KEPT.get(name, ()):
                shutil.copy(source, HERE / name / source.name)
        if (Path(folder) / "verdict.md").is_file():
            shutil.copy(Path(folder) / "verdict.md", HERE / name / "verdict.md")
    for table in TABLES:
        print(table(), end="\n\n")


if __name__ == "__main__":
    main()
