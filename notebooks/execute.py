"""Run the notebooks and write them back with their outputs.

python notebooks/execute.py
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}).execute()
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
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for found in sorted(HERE.glob("*.ipynb")):
        execute(found)
