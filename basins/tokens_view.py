"""Tokens of a text coloured by score, drawn by circuitsvis, for notebooks and as pages that open without a network.

circuitsvis loads its script from a CDN, or inlines 1.3 MB for every view. Here the script of the installed package is
inlined, once a page. Its component sets tokens as HTML, so they are escaped here.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from jaxtyping import Float
from torch import Tensor

from basins.errors import BasinsError, MissingExtra, choose
from basins.scores import LEAST_DISTINCT

if TYPE_CHECKING:
    from basins.scores import BasinScores

SCORES = ("relative", "update", "raw")
# Colours are full at this many half interquartile ranges from the median: about 2 standard deviations of a normal.
FULL_COLOR = 3.0
RED, BLUE = (255, 0, 0), (0, 0, 255)
# A page shows the first sequences up to about this many tokens: browsers get slow beyond.
TOKENS_PER_PAGE = 5_000
OPEN_AT_FIRST = 3

# circuitsvis gives a token without a number (NaN) no background and white text.
STYLE = """<style>
.basins-tokens { font: 15px/1.5 sans-serif; color: #222; background: #fff; padding: 2px 6px; }
.basins-tokens .unscored, .basins-tokens .colored-tokens span > span[style*="rgba(0, 0, 0, 0)"] {
  background: #ddd !important; color: #777 !important; text-decoration: line-through; }
.basins-tokens .still { white-space: pre-wrap; }
.basins-tokens .about { color: #555; font-size: 13px; max-width: 60em; }
.basins-tokens h1 { font-size: 22px; }
.basins-tokens summary { cursor: pointer; margin-top: 8px; }
body.basins-tokens { padding-bottom: 30em; }
body.basins-tokens details > div > div { padding-bottom: 0 !important; }
</style>"""


@dataclass(frozen=True, eq=False)
class TokenView:
    """One sequence, coloured. Shows itself in notebooks (1.3 MB each); `save_html` writes pages of many.

    `values`: a row a token, a column a layer; NaN where the token is not scored. `caption`: what the colours mean.
    """

    tokens: tuple[str, ...]
    values: Float[Tensor, "pos layer"]
    labels: tuple[str, ...]
    caption: str
    sequence: int

    def __repr__(self) -> str:
        return f"TokenView(sequence {self.sequence}, {len(self.tokens)} tokens, {', '.join(self.labels)})"

    def _repr_html_(self) -> str:
        name = _new_name()
        about = f'<p class="about">{html.escape(self.caption)}</p>'
        return (
            f'{STYLE}<div class="basins-tokens">{about}{self.container(name)}</div>'
            f'<script type="module">{_script()}\n{self.call(name)}</script>'
        )

    def container(self, name: str) -> str:
        """What stands where no script runs (a notebook that is not trusted): the first layer, without interaction."""
        spans = [token_span(token, value) for token, value in zip(self.tokens, self.values[:, 0].tolist(), strict=True)]
        return f'<div id="{name}"><div class="still">{html.escape(self.labels[0])}: {"".join(spans)}</div></div>'

    def call(self, name: str) -> str:
        """The line of JavaScript that draws the view into the container."""
        props = {
            "tokens": [html.escape(token, quote=False) for token in self.tokens],
            "values": [[round(value, 3) for value in row] for row in self.values.tolist()],
            "labels": self.labels,
            "positiveBounds": [FULL_COLOR] * len(self.labels),
            "negativeBounds": [-FULL_COLOR] * len(self.labels),
        }
        # "<" could close the script element. NaN is a JavaScript word.
        return f"CircuitsVis.render('{name}', CircuitsVis.ColoredTokensMulti, {_in_script(json.dumps(props))});"


def show(
    scores: BasinScores,
    sequence: int = 0,
    layer: int | Iterable[int] | None = None,
    score: str = "relative",
    lookup: bool = False,
) -> TokenView:
    """Tokens of one sequence, coloured by one score at the layers in `layer` (None: all, to choose by pointing).

    Blue is more compressed than the median token of the same layer, red less, white the median. The number is the
    distance from that median in half interquartile ranges of the layer: layers differ tenfold in spread, and so each is
    seen. Both are taken over all scored tokens of the result, not of the sequence. Tokens without a score, or with
    fewer than 3 distinct states among themselves and their neighbours (a floor, not a finding), are grey and struck
    through.

    `score`: "relative" (what the block does), "update" (what it writes), "raw" (mostly density before the block).
    `lookup`: True shows the neighbours' cached outputs instead of re-running.
    """
    _require_circuitsvis()
    values = centred(scores, score, lookup)
    rows, layers = _rows(scores, layer)
    return _view(scores, values[rows], layers, sequence, _caption(score, lookup))


def save_html(
    scores: BasinScores,
    path: str | Path,
    sequences: Iterable[int] | None = None,
    layer: int | Iterable[int] | None = None,
    score: str = "relative",
    lookup: bool = False,
    title: str | None = None,
    names: dict[int, str] | None = None,
) -> Path:
    """Write one page with the views of several sequences (None: the first, up to about 5,000 tokens).

    It loads nothing: it opens without a network. An existing file is replaced, as a whole. `names`: what to call a
    sequence, by its number.
    """
    _require_circuitsvis()
    path = Path(path)
    values = centred(scores, score, lookup)
    rows, layers = _rows(scores, layer)
    shown = list(sequences) if sequences is not None else _first_sequences(scores)
    views = [_view(scores, values[rows], layers, sequence, "") for sequence in shown]
    heading = title or str(scores.settings.get("model", "scores"))
    page = _page(views, heading, _caption(score, lookup), values.shape[1], names or {})
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def centred(scores: BasinScores, score: str, lookup: bool = False) -> Float[Tensor, "layer batch pos"]:
    """Distance from the layer's median in half interquartile ranges; NaN where not scored or n_distinct < 3."""
    choose("score", score, SCORES)
    if lookup and scores.lookup is None:
        raise BasinsError(
            "lookup=True shows the neighbours' cached outputs, and this result has none beside its scores. They come "
            'with method="rerun" when layer L+1 is known: score a cache that holds it, or use score_texts.'
        )
    of = scores.lookup if lookup and scores.lookup is not None else scores
    values = getattr(of, score).double()
    values = values.masked_fill(scores.n_distinct < LEAST_DISTINCT, float("nan"))
    flat = values.flatten(1)
    low, median, high = flat.nanquantile(torch.tensor([0.25, 0.5, 0.75], dtype=flat.dtype), dim=1)
    spread = (high - low) / 2
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    return (values - median[:, None, None]) / spread[:, None, None]


def _view(
    scores: BasinScores, values: Float[Tensor, "layer batch pos"], layers: list[int], sequence: int, caption: str
) -> TokenView:
    batch = values.shape[1]
    if not -batch <= sequence < batch:
        raise BasinsError(
            f"sequence={sequence} is out of range: there are {batch} sequences, numbered 0 to {batch - 1}."
        )
    sequence %= batch
    real = scores.real_tokens()[sequence].nonzero()[:, 0]
    labels = tuple(f"layer {layer}" for layer in layers)
    tokens = tuple(_words(scores, sequence, int(pos)) for pos in real)
    return TokenView(tokens, values[:, sequence, real].T, labels, caption, sequence)


def _words(scores: BasinScores, sequence: int, pos: int) -> str:
    """The token as text; its id where no tokenizer is known; its position where not even ids are."""
    if scores.token_strings is not None:
        token = scores.token_strings[sequence][pos]
        return token.replace("\n", "↵\n").replace("\t", "→") or "∅"
    return f" {int(scores.tokens[sequence, pos]) if scores.tokens is not None else pos}"


def _rows(scores: BasinScores, layer: int | Iterable[int] | None) -> tuple[list[int], list[int]]:
    """Where the wanted layers stand along the first axis, and their numbers."""
    if layer is None:
        return list(range(len(scores.layers))), list(scores.layers)
    wanted = [layer] if isinstance(layer, int) else list(layer)
    if not wanted:
        raise BasinsError(f"layer is empty. Scored: {', '.join(map(str, scores.layers))}; None shows all of them.")
    rows = [scores.layer_index(one) for one in wanted]
    return rows, [scores.layers[row] for row in rows]


def _first_sequences(scores: BasinScores) -> list[int]:
    total = scores.real_tokens().sum(1).cumsum(0)
    return list(range(max(1, int((total <= TOKENS_PER_PAGE).sum()))))


def _caption(score: str, lookup: bool) -> str:
    name = {
        "relative": "relative score ln(V_in / V_out), what the block does to the neighbourhood",
        "update": "update score -ln V_upd, how alike the block writes to all neighbours",
        "raw": "raw score -ln V_out, which mostly repeats how dense the neighbourhood was before the block",
    }[score]
    outputs = "looked up in the neighbours' own contexts" if lookup else "of the re-run block"
    return (
        f"Colour: {name} ({outputs}), as distance from the median token of the same layer in half interquartile "
        f"ranges. Blue is more compressed, red less, white the median; full colour at {FULL_COLOR:g}. Grey and struck "
        f"through: not scored (left out, or fewer than {LEAST_DISTINCT} distinct states). Point at a layer to see it, "
        "click to keep it; point at a token for all layers."
    )


def _page(views: list[TokenView], title: str, caption: str, n_sequences: int, names: dict[int, str]) -> str:
    parts = []
    for i, view in enumerate(views):
        name = html.escape(names.get(view.sequence, f"sequence {view.sequence}"))
        start = html.escape("".join(view.tokens[:14]).replace("↵\n", " ").strip())
        opened = " open" if i < OPEN_AT_FIRST else ""
        head = f"<summary>{name}, {len(view.tokens)} tokens: {start} …</summary>"
        parts.append(f'<details{opened} data-view="{i}">{head}{view.container(f"view-{i}")}</details>')
    left = n_sequences - len(views)
    which = f" {left} of {n_sequences} sequences are not on this page." if left else ""
    calls = ",\n".join(f"() => {{ {view.call(f'view-{i}')} }}" for i, view in enumerate(views))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}: tokens by compression</title>{STYLE}</head>
<body class="basins-tokens"><h1>{html.escape(title)}</h1>
<p class="about">{html.escape(caption + which)}</p>
{"".join(parts)}
<script>{_script()}</script>
<script>
const draw = [{calls}];
// A view is drawn when it is opened for the first time.
const once = (part) => {{ const i = part.dataset.view; if (draw[i]) {{ draw[i](); draw[i] = null; }} }};
for (const part of document.querySelectorAll("details")) {{
  if (part.open) once(part);
  part.addEventListener("toggle", () => part.open && once(part));
}}
</script></body></html>
"""


def token_span(token: str, value: float) -> str:
    text = html.escape(token.replace("\n", ""))
    if value != value:
        return f'<span class="unscored">{text}</span>'
    strength = min(abs(value) / FULL_COLOR, 1.0)
    red, green, blue = (round(255 + (to - 255) * strength) for to in (BLUE if value >= 0 else RED))
    ink = "#fff" if strength > 0.6 else "#000"
    return f'<span style="background: rgb({red},{green},{blue}); color: {ink}">{text}</span>'


def _new_name() -> str:
    return f"basins-{uuid4().hex[:12]}"


def _in_script(text: str) -> str:
    return text.replace("<", "\\u003c")


def _require_circuitsvis() -> Any:
    try:
        import circuitsvis
    except ImportError as error:
        raise MissingExtra("circuitsvis", "view") from error
    return circuitsvis


def _script() -> str:
    """circuitsvis' own bundle, which defines `CircuitsVis`; safe inside a script element, without its source map."""
    folder = Path(_require_circuitsvis().__file__).parent
    source = (folder / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    source = source.partition("//# sourceMappingURL=")[0]
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
