"""`kdcore list`: the papers, part by part."""

from __future__ import annotations

from kdcore.commands.checkout import pipeline, root

__all__ = ["list_chapters"]


def list_chapters() -> None:
    """List the chapters, part by part.

    Example:
        >>> list_chapters()
        Foundations
          kd ...
    """
    curriculum = pipeline("papers").load(root())
    for part, papers in curriculum.by_part().items():
        print(curriculum.parts[part]["title"])
        for paper in papers:
            print(f"  {paper.slug:18} {paper.title}")
