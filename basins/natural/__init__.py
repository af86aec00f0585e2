"""Passages that a pretrained model may know by heart, controls that it cannot know, and plain text beside both.

| kind | passages | what |
|---|---|---|
| `famous` | 58 | scripture, founding documents, speeches, licences, novels, poems, drama, sequences |
| `novel` | 58 | one control for each famous passage: its style, sentence shape and length, other content |
| `wikitext` | 60 | paragraphs of 70 to 100 words from the test split of WikiText-103 |

No control shares a run of 8 words with its famous passage. The controls are odd prose on purpose (a psalm about a
ferryman, a licence for garden cuttings), so a model's loss on them is higher than on plain text: famous against novel
overstates what memorisation does to the loss, and the plain kind is the other baseline. "Plain" means neither famous
nor odd, not unseen: Wikipedia is in most models' training text.

Cut by benchmarks/natural_data.py. LICENCES.md beside this file lists the sources, their licences and what was left
out for its licence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from basins.errors import choose

FILE = Path(__file__).parent / "files" / "passages.jsonl"
KINDS = ("famous", "novel", "wikitext")


@dataclass(frozen=True)
class Natural:
    """`group`: genre. `title`: work or article. `match`: `id` of a control's famous passage, else ""."""

    id: str
    text: str
    kind: str
    group: str
    title: str
    source: str
    match: str
    licence: str


def passages(*kinds: str) -> list[Natural]:
    """The passages of these `KINDS`, in the file's order; without a kind, all."""
    wanted = [choose("kind", kind, KINDS) for kind in kinds] or KINDS
    with open(FILE, encoding="utf-8") as lines:
        return [passage for line in lines if (passage := Natural(**json.loads(line))).kind in wanted]
