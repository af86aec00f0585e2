"""The shape of the package: who imports whom, what `import basins` loads, and what may not appear in it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "basins"

# Data flows one way: a file imports only from rows above its own. A folder is one name: its files share its row.
ROWS = [
    ["errors", "settings", "progress", "folders", "precision", "kernel_trial", "quotes", "memory"],
    [
        *["lens", "block_calls", "shared_calls", "models", "shapes", "wrap", "gguf_files", "load_errors", "corpus"],
        "texts",
        # Words with tags, and the model's tokens that they come in.
        *["words", "conllu", "nltk_words", "tagged_texts", "alignment", "hub_rows", "named_texts"],
    ],
    [
        *[
            "activations",
            "state_store",
            "neighbors",
            "indexes",
            "half_search",
            "half_kernels",
            "distinct",
            "equal_states",
        ],
        *["rerun", "hooked_transformer", "patching", "selfcheck", "core", "block_parts"],
        *["patched_attention", "patched_kernels", "neighbor_variances", "variance_kernels"],
    ],
    ["scores", "attributed", "fitted_bank"],
    [
        *["jobs", "costs", "moments", "operations", "planning"],
        *["scorer", "layer_loop", "transition", "sources", "results", "attribution", "stats"],
        *["passes", "targets", "attention_importance", "gradient_importance", "integrated_gradients", "ablation"],
        *["path_points"],
        # What a model predicts, and what experiments ask of it.
        *["losses", "state_norms", "pushing"],
        *["neighborhoods", "decomposition", "local_limit", "overlap", "sinks", "random_weights"],
        *["nulls", "token_nulls"],
        *["continuation", "kv_cache", "labels"],
        *["dimension", "aggregates", "baselines"],
        *["logistic", "cross_validation", "blind", "matching", "added_value"],
        *["finetuning", "model_copy", "controlled", "natural"],
    ],
    ["experiments"],
    [
        "plots",
        "tables",
        "tokens_view",
        "pairs_view",
        "runs",
        "experiment_runs",
        "null_plots",
        "importance_plots",
        "importance_view",
        "linguistic_plots",
        "linguistic_view",
        "memorization_plots",
        "memorization_view",
        "layers_plots",
        "layers_view",
        "robustness_plots",
        "robustness_view",
    ],
    ["report", "cluster", "console", "demo", "doctor", "studies"],
    [
        "cli",
        "plan_command",
        "experiment_commands",
        "layers_command",
        "linguistic_command",
        "robustness_command",
        "study_command",
    ],
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}

# One part of the design may be split over several files of its row: importer -> imported.
WITHIN_A_ROW = {
    ("settings", "errors"),
    ("folders", "errors"),
    ("memory", "errors"),
    ("block_calls", "lens"),
    ("shared_calls", "block_calls"),
    ("models", "gguf_files"),
    ("shapes", "gguf_files"),
    ("shapes", "lens"),
    ("shapes", "load_errors"),
    ("shapes", "models"),
    ("shapes", "wrap"),
    ("models", "load_errors"),
    ("models", "wrap"),
    ("gguf_files", "load_errors"),
    ("corpus", "texts"),
    ("texts", "hub_rows"),
    ("texts", "named_texts"),
    ("named_texts", "conllu"),
    ("named_texts", "hub_rows"),
    ("named_texts", "nltk_words"),
    ("tagged_texts", "named_texts"),
    ("conllu", "words"),
    ("nltk_words", "words"),
    ("tagged_texts", "conllu"),
    ("tagged_texts", "nltk_words"),
    ("tagged_texts", "texts"),
    ("tagged_texts", "words"),
    ("alignment", "corpus"),
    ("alignment", "words"),
    ("activations", "state_store"),
    ("neighbors", "indexes"),
    ("neighbors", "equal_states"),
    ("neighbors", "half_search"),
    ("indexes", "half_search"),
    ("half_search", "half_kernels"),
    ("null_plots", "plots"),
    ("importance_plots", "null_plots"),
    ("linguistic_plots", "null_plots"),
    ("memorization_plots", "null_plots"),
    ("hooked_transformer", "patching"),
    ("core", "block_parts"),
    ("core", "patched_attention"),
    ("patched_attention", "patched_kernels"),
    ("neighbor_variances", "variance_kernels"),
    ("rerun", "block_parts"),
    ("rerun", "core"),
    ("rerun", "hooked_transformer"),
    ("rerun", "patching"),
    ("selfcheck", "block_parts"),
    ("selfcheck", "core"),
    ("selfcheck", "patching"),
    ("selfcheck", "rerun"),
    ("transition", "sources"),
    ("results", "transition"),
    ("gradient_importance", "passes"),
    ("gradient_importance", "targets"),
    ("attention_importance", "passes"),
    ("integrated_gradients", "passes"),
    ("integrated_gradients", "path_points"),
    ("integrated_gradients", "targets"),
    ("ablation", "passes"),
    ("ablation", "targets"),
    ("attribution", "ablation"),
    ("attribution", "attention_importance"),
    ("attribution", "gradient_importance"),
    ("attribution", "integrated_gradients"),
    ("attribution", "passes"),
    ("attribution", "results"),
    ("attribution", "sources"),
    ("attribution", "targets"),
    ("losses", "sources"),
    ("pushing", "sources"),
    ("pushing", "transition"),
    ("neighborhoods", "pushing"),
    ("decomposition", "neighborhoods"),
    ("decomposition", "stats"),
    ("local_limit", "neighborhoods"),
    ("overlap", "neighborhoods"),
    ("sinks", "sources"),
    ("scorer", "decomposition"),
    ("state_norms", "sources"),
    ("continuation", "kv_cache"),
    ("continuation", "sources"),
    ("labels", "continuation"),
    ("labels", "losses"),
    ("aggregates", "dimension"),
    ("baselines", "aggregates"),
    ("cross_validation", "logistic"),
    ("cross_validation", "stats"),
    ("blind", "cross_validation"),
    ("blind", "logistic"),
    ("blind", "stats"),
    ("added_value", "cross_validation"),
    ("added_value", "matching"),
    ("added_value", "stats"),
    ("finetuning", "model_copy"),
    ("controlled", "stats"),
    ("scorer", "attribution"),
    ("scorer", "results"),
    ("scorer", "sources"),
    ("scorer", "layer_loop"),
    ("scorer", "moments"),
    ("costs", "jobs"),
    ("jobs", "sources"),
    ("jobs", "transition"),
    ("moments", "costs"),
    ("moments", "jobs"),
    ("operations", "jobs"),
    ("planning", "costs"),
    ("planning", "jobs"),
    ("planning", "moments"),
    ("planning", "operations"),
    ("planning", "scorer"),
    ("layer_loop", "sources"),
    ("layer_loop", "transition"),
    ("nulls", "pushing"),
    ("token_nulls", "nulls"),
    ("token_nulls", "pushing"),
    ("cli", "experiment_commands"),
    ("cli", "linguistic_command"),
    ("linguistic_command", "experiment_commands"),
    ("cli", "study_command"),
    ("cli", "plan_command"),
    ("plan_command", "experiment_commands"),
    ("study_command", "experiment_commands"),
    ("cli", "layers_command"),
    ("layers_command", "experiment_commands"),
    ("cli", "robustness_command"),
    ("robustness_command", "experiment_commands"),
    ("experiment_runs", "plots"),
    ("experiment_runs", "runs"),
    ("importance_plots", "plots"),
    ("linguistic_plots", "plots"),
    ("linguistic_view", "pairs_view"),
    ("linguistic_view", "tokens_view"),
    ("memorization_plots", "plots"),
    ("memorization_view", "pairs_view"),
    ("layers_plots", "plots"),
    ("layers_view", "pairs_view"),
    ("robustness_plots", "plots"),
    ("robustness_view", "pairs_view"),
    ("importance_view", "pairs_view"),
    ("importance_view", "tokens_view"),
    ("pairs_view", "tokens_view"),
    ("runs", "plots"),
    ("runs", "tokens_view"),
}

# The shipped models import nothing of basins but its errors, and only these use them.
POCKET_USERS = {"models", "shapes", "corpus", "named_texts", "tagged_texts", "demo", "doctor", "cli", "experiments"}

HEAVY = ["faiss", "matplotlib", "circuitsvis", "datasets", "nltk", "ray", "sklearn", "scipy", "statsmodels", "wandb"]
HEAVY.append("rapidfuzz")
# It loads datasets and wandb, and version 4 has no HookedTransformer to import.
HEAVY.append("transformer_lens")

MAX_LINES = 300


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    """The row's name: `basins/experiments/depth.py` -> "experiments"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.Module, path: Path) -> Iterator[tuple[str, int]]:
    """(module of basins, line) for each import of the package from itself, inside functions too."""
    package = ["basins", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{source}.{alias.name}" for alias in node.names] if source == "basins" else [source]
        else:
            continue
        for target in targets:
            if target.startswith("basins."):
                yield target.split(".")[1], node.lineno


def _fault(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`; None where it may."""
    if imported.startswith("__") or imported == importer:  # __version__; files of one folder
        return None
    if imported == "pocket":
        return None if importer in POCKET_USERS else f"only {', '.join(sorted(POCKET_USERS))} use the pocket models"
    if imported not in ROW:
        return f"{imported} is no file of the design: give it a row in tests/test_imports.py"
    if importer == "pocket":
        return None if imported == "errors" else "pocket imports nothing of basins but errors"
    if ROW[imported] == ROW[importer]:
        return None if (importer, imported) in WITHIN_A_ROW else f"both are in row {ROW[importer]}"
    if ROW[imported] > ROW[importer]:
        return f"row {ROW[importer]} may not import from row {ROW[imported]}"
    return None


def test_every_file_has_a_row():
    unknown = {_module(path) for path in _files()} - ROW.keys() - {"__init__", "__main__", "pocket"}
    assert not unknown, f"give {sorted(unknown)} a row in tests/test_imports.py"


def test_files_import_only_from_rows_above_their_own():
    faults = []
    for path in _files():
        importer = _module(path)
        if importer in ("__init__", "__main__") or importer not in ROW.keys() | {"pocket"}:
            continue
        for imported, line in _imports(ast.parse(path.read_text()), path):
            fault = _fault(importer, imported)
            if fault:
                faults.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports basins.{imported}: {fault}")
    assert not faults, "\n".join(faults)


def test_imports_within_a_row_have_no_circle():
    graph: dict[str, set[str]] = {}
    for importer, imported in WITHIN_A_ROW:
        assert ROW[importer] == ROW[imported], f"{importer} and {imported} are in different rows"
        graph.setdefault(importer, set()).add(imported)
    TopologicalSorter(graph).prepare()


def test_imports_within_a_row_are_all_needed():
    made = {(_module(path), name) for path in _files() for name, _ in _imports(ast.parse(path.read_text()), path)}
    assert not WITHIN_A_ROW - made, "take these out of the list"


@pytest.mark.parametrize(
    ("source", "importer", "fault"),
    [
        ("from basins.scorer import BasinScorer", "neighbors", "row 2 may not import from row 4"),
        ("from basins import scorer", "neighbors", "row 2 may not import from row 4"),
        ("from . import scorer", "neighbors", "row 2 may not import from row 4"),
        ("from .scorer import BasinScorer", "neighbors", "row 2 may not import from row 4"),
        ("import basins.cli", "scores", "row 3 may not import from row 8"),
        ("def f():\n    import basins.cli", "scores", "row 3 may not import from row 8"),
        ("from basins.lens import run", "models", "both are in row 1"),
        ("from basins.helpers import run", "models", "no file of the design"),
        ("from basins.pocket import passages", "scores", "use the pocket models"),
        ("from basins.lens import run", "scorer", None),
        ("import torch\nfrom torch import nn", "errors", None),
    ],
)
def test_the_rule_itself(source, importer, fault):
    found = [_fault(importer, imported) for imported, _ in _imports(ast.parse(source), PACKAGE / f"{importer}.py")]
    if fault is None:
        assert not any(found)
    else:
        assert len(found) == 1
        assert fault in found[0]


# What several experiments share. Any other file belongs to the experiment that its name starts with.
SHARED_BY_EXPERIMENTS = {
    *("primary", "sequences", "token_columns", "frames", "loaded", "finding", "score_store"),
    *("text_sample", "under_nulls", "null_verdicts"),
}


def test_experiments_never_import_each_other():
    for path in sorted((PACKAGE / "experiments").glob("*.py")):
        own = path.stem.split("_")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("basins.experiments"):
                continue
            parts = (node.module or "").split(".")[2:] or [alias.name for alias in node.names]
            for part in parts:
                fine = part in SHARED_BY_EXPERIMENTS or (
                    own == part.split("_")[0] and path.stem not in SHARED_BY_EXPERIMENTS
                )
                assert fine or path.stem == "__init__", f"{path.name} imports experiments.{part}"


def test_import_basins_is_light():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import basins"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert "basins" in loaded
    assert not loaded & set(HEAVY)


def _forbidden(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.partition(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
                    yield node.lineno, f"import {name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if f"{node.value.id}.{node.attr}" in ("torch.load", "pd.read_pickle", "pandas.read_pickle"):
                yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield node.lineno, f"{node.func.id}()"
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            is_off = isinstance(node.value, ast.Constant) and node.value.value is False
            if not is_off:
                yield node.value.lineno, f"{node.arg} that is not False"


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_from_files(path):
    assert not list(_forbidden(ast.parse(path.read_text())))


def test_what_is_forbidden_is_found():
    source = "import pickle\nfrom dill import load\ntorch.load(f)\neval('1')\nmodel.eval()\nf(trust_remote_code=True)\n"
    assert [line for line, _ in _forbidden(ast.parse(source))] == [1, 2, 4, 3, 6]


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < MAX_LINES
