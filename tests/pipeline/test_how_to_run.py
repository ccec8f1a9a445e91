"""The commands on the page "How to run" are executed as they stand there, in the order of the page.

What only looks runs in this checkout; what runs chapters runs in a small project with chapters of the same names.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from pipeline.conftest import papers, tiny_project, write_study

__all__ = ["tiny_project"]

PARTS = {"foundations": "kd", "logits": "spherical_kd"}
ELSEWHERE = ("slurm", "kubernetes")  # commands for machines that this one is not
_COMMAND = re.compile(r"^(?:    )?(?:\$ )?((?:kdcore|papermill) .+)\n((?:    )?error: .+)?", flags=re.M)


def commands(page: str) -> list[tuple[str, str]]:
    """Commands in the page's code blocks, with the error that the page shows below, or nothing."""
    blocks = re.findall(r"^```[a-z]*\n((?:.*\n)*?)^```$|^((?:    .*\n)+)", page, flags=re.M)
    return [(line, error.strip()) for block in blocks for line, error in _COMMAND.findall("".join(block))]


def looks_only(words: list[str], root: Path) -> bool:
    """Whether a command runs and downloads nothing, and what it names is in the checkout."""
    paths = [word for word in words[2:] if "/" in word or word == "two_seeds"]
    return (
        words[:2] in (["kdcore", name] for name in ("list", "doctor", "data", "ledger", "compare"))
        and words[2:3] != ["get"]
        and all((root / path).exists() for path in paths)
    )


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """A command line of the page, by this Python; nothing is downloaded."""
    code = "import sys; sys.argv[0] = 'kdcore'; from kdcore.commands import main; main()"
    program = ["-c", code] if words[0] == "kdcore" else ["-m", "papermill"]
    refused = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    return subprocess.run(
        [sys.executable, *program, *words[1:]], cwd=folder, env=os.environ | refused, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip


def test_every_command_of_the_page_does_what_the_page_says(tiny_project, root):
    toc = "".join(f"      - file: chapters/{part}/{method}\n" for part, method in PARTS.items())
    (tiny_project / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/index\nparts:\n  - caption: All\n    chapters:\n{toc}"
    )
    (tiny_project / "book" / "papers.yml").write_text(yaml.safe_dump(papers(PARTS)))
    for part, method in PARTS.items():
        write_study(tiny_project, part, method)
    for name in ("LICENSE", "constraints.txt", "environment.yml", "pyproject.toml"):  # which an archive holds
        shutil.copy(root / name, tiny_project)
    for made in ("kdcore run spherical_kd --profile cpu --results-dir book/records", "kdcore run kd"):
        assert call(made.split(), tiny_project).returncode == 0  # the records that the page speaks of
    found = commands((root / "book" / "how_to_run.md").read_text(encoding="utf-8"))
    assert len(found) > 10
    for line, error in found:
        words = shlex.split(line)
        if any(word in line for word in ELSEWHERE):
            continue
        began = time.perf_counter()
        done = call(words, root if looks_only(words, root) else tiny_project)
        print(f"{time.perf_counter() - began:5.1f} s  {line}", flush=True)
        if words[1:3] == ["data", "get"]:
            assert "could not be downloaded" in done.stderr, line
        elif error:
            assert done.returncode == 1, line
            assert done.stderr.split("; there are")[0] == error.split("; there are")[0], line
        else:
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_error_that_the_page_shows_is_the_one_of_the_real_chapter(root):
    shown = [(line, error) for line, error in commands((root / "book" / "how_to_run.md").read_text("utf-8")) if error]
    assert shown
    for line, error in shown:
        assert call(shlex.split(line), root).stderr == error + "\n"
