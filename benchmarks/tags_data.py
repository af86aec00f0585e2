"""The tags that ship with the pocket models' demo text. Run once.

    NLTK_DATA=../shared/data/nltk_data python benchmarks/tags_data.py   # writes basins/pocket/files/demo_tags.jsonl

Automatic, not gold: Punkt's sentences, NLTK's words, the averaged perceptron tagger's tags, universal tagset. A line a
paragraph of demo.txt: where each word starts and ends (characters), its tag, the first word of each sentence.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from basins import pocket
from basins.nltk_words import tag_texts
from basins.words import TaggedText

OUT = Path(__file__).parents[1] / "basins" / "pocket" / "files" / "demo_tags.jsonl"


def line(text: TaggedText) -> str:
    firsts = [i for i, number in enumerate(text.sentences) if i == 0 or number != text.sentences[i - 1]]
    row = {"starts": [start for start, _ in text.spans], "lengths": [stop - start for start, stop in text.spans]}
    row |= {"sentences": firsts}
    return json.dumps(row | {"tags": " ".join(text.tags)}, separators=(",", ":")) + "\n"


def main(out: Path) -> None:
    tagged = tag_texts(pocket.demo_text(), "demo", "public domain")
    out.write_bytes("".join(map(line, tagged.texts)).encode("ascii"))
    print(f"{tagged}, {out.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    main(parser.parse_args().out)
