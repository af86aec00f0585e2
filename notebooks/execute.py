"""Run the notebooks and write them back with their outputs.

python notebooks/execute.py
python notebooks/execute.py notebooks/main_experiment.ipynb
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def joined(outputs: list) -> list:
    """What was printed on end, in one piece: a bar between two lines leaves them apart."""
    kept: list = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    # An empty folder: a notebook that takes a study up again would show what older code found.
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Progress bars: widgets that nobody can see any more, and the empty output that takes them away.
            cell.outputs = [
                output
                for output in cell.outputs
                if "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
                and output.get("data", {}).get("text/plain") != ""
                and output.get("name") != "stderr"
            ]
            cell.outputs = joined(cell.outputs)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")), help="unless: all")
    for found in parser.parse_args().notebooks:
        execute(found)
