"""Make the README's pictures from a demo run: layers.png and tokens.png, beside this file.

basins demo --out runs/pictures && python docs/pictures.py runs/pictures

tokens.png is a photograph of the token page by a headless Chromium or Chrome, which has to be installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from basins.plots import plot_layers, save
from basins.runs import read_run
from basins.tokens_view import save_html

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SEQUENCES = (0,)
LAYERS = range(3, 8)
SIZE = "900,400"


def main(folder: str) -> None:
    scores = read_run(folder).scores
    save(plot_layers(scores, wide=True), HERE / "layers.png")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"tokens.png needs one of: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as temporary:
        page = save_html(scores, Path(temporary) / "tokens.html", SEQUENCES, LAYERS, title="pocket, relative score")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
        picture = f"--screenshot={HERE / 'tokens.png'}"
        subprocess.run(
            [browser, *options, f"--window-size={SIZE}", picture, page.as_uri()], check=True, capture_output=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
