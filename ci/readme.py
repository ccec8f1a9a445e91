"""Write the README's table of papers and verdicts from the committed records, between its two markers.

python ci/readme.py          # write
python ci/readme.py --check  # only compare
"""

from __future__ import annotations

import re
import sys

from pages import ROOT, chapters, title

from kdcore.study import VERDICTS, read_record, record_path

_BEGIN, _END = "<!-- table: made by `make readme` -->", "<!-- end of table -->"
_PAPER = re.compile(r"^\| paper \|.*\*(.+?)\*.*\[arXiv ([\d.]+)\]", flags=re.M)


def row(name: str) -> str:
    """One chapter: link, paper, and its recorded verdicts."""
    path = ROOT / "chapters" / f"{name}.md"
    paper, arxiv = _PAPER.search(path.read_text(encoding="utf-8")).groups()
    cells = [f"[{title(path)}](chapters/{name}.md)", f"{paper} ([{arxiv}](https://arxiv.org/abs/{arxiv}))"]
    for profile in ("cpu", "gpu"):
        file = record_path(ROOT / "book" / "records", name, profile)
        if not file.exists():
            cells.append("–")
            continue
        found = [claim["verdict"] for claim in read_record(file)["claims"]]
        cells.append(", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found))
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    head = "| chapter | paper | claims on real data, `cpu` | `gpu` |\n|---|---|---|---|"
    table = "\n".join([_BEGIN, head, *map(row, chapters()), _END])
    new = re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", lambda _: table, text, flags=re.S)
    if "--check" in sys.argv:
        if new != text:
            print("error: the README's table is out of date; run `make readme`.", file=sys.stderr)
        return int(new != text)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
