"""Execute one chapter through papermill: checked parameters, one thread, a whole notebook or none.

python ci/execute.py foundations/kd --profile cpu -p temperature=2
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

from needs import needs
from parameters import check, knobs_of_cell
from parameters import parse as _parse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package of this checkout, whichever is installed
from kdcore.sources import code_digest, notebook_code
from kdcore.versions import revision, versions

ROOT = Path(__file__).resolve().parent.parent
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_ONE_THREAD["OMP_WAIT_POLICY"] = "PASSIVE"  # where a chapter asks for more, threads that wait leave the core to others


def source_path(name: str) -> Path:
    """The Markdown source of a page: a chapter `part/method`, or a page `book/…` or `book/parts/…`.

    Raises:
        ValueError: there is no such page; names the nearest.
    """
    pages = {f"{path.parent.name}/{path.stem}": path for path in sorted((ROOT / "chapters").glob("*/*.md"))}
    book = sorted([*(ROOT / "book").glob("*.md"), *(ROOT / "book" / "parts").glob("*.md")])
    pages |= {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in book}
    if name in pages:
        return pages[name]
    same_method = [page for page in pages if page.split("/")[1] == name]
    if len(same_method) == 1:
        return pages[same_method[0]]
    near = get_close_matches(name, [*pages, *(page.split("/")[1] for page in pages)], n=1)
    raise ValueError(f"no chapter {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))


def check_parameters(notebook: Any, given: dict[str, Any]) -> None:
    """Raise `ValueError` unless the notebook's parameters cell has every given name and takes its value."""
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    check(knobs_of_cell("\n".join(cells)), given)


def execute(
    name: str, output: Path, parameters: dict[str, Any], log: Path | None = None, minutes: float | None = None
) -> float:
    """Execute a page and put the notebook at `output` in one step; return the seconds that it took.

    On failure the notebook as far as it got is kept beside `output`, as `<name>.failed.ipynb`.

    Args:
        name, parameters: the page and what differs from its defaults.
        output: of the executed notebook.
        log: takes what the cells print.
        minutes: that a cell may take; by profile if left out, see `ci/needs.py`.

    Raises:
        RuntimeError: a cell failed, took too long or lost its process; names page, cell and error.
        ValueError: unknown page or parameter.
    """
    # jupytext does without its plug-in for Jupyter's server, which would take a second to load at each start.
    sys.modules.setdefault("jupyter_server", None)  # type: ignore[arg-type]
    import jupytext

    source = source_path(name)
    notebook = jupytext.read(source)
    check_parameters(notebook, parameters)
    os.environ.update(_ONE_THREAD | {"KDCORE_STATIC": "1", "PYTHONHASHSEED": "0"})
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = output.with_suffix(".failed.ipynb")
    origin = provenance(source, parameters)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".partial-") as folder:
        given, partial = Path(folder) / source.with_suffix(".ipynb").name, Path(folder) / "executed.ipynb"
        jupytext.write(notebook, given)
        try:
            _run(given, partial, parameters, log, minutes or needs(name, parameters.get("profile", "quick")).minutes)
        except RuntimeError as error:
            partial.replace(failed)
            raise RuntimeError(
                f"{name}: code cell {_failed_cell(failed)} {error}\nThe notebook up to there is kept at {failed}."
            ) from None
        seconds = time.perf_counter() - began
        content = json.loads(partial.read_text(encoding="utf-8"))
        content["metadata"]["kdcore"] = (
            {"page": name, "seconds": round(seconds, 1)} | origin | _of_record(source, parameters)
        )
        content["metadata"].pop("papermill", None)  # absolute paths
        for cell in content["cells"]:
            duration = cell["metadata"].pop("papermill", {}).get("duration")
            if duration:  # by the wall clock, which may have been set back
                cell["metadata"]["kdcore"] = {"seconds": max(0.0, round(duration, 2))}
            cell["metadata"].pop("execution", None)
            if "injected-parameters" in cell["metadata"].get("tags", []):
                cell["metadata"]["tags"].append("remove-cell")  # where a build keeps its records interests no reader
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(output)
        failed.unlink(missing_ok=True)
    return seconds


def provenance(source: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """What an executed notebook says of itself: parameters given, digests of text and code, commit, versions, start."""
    text = source.read_text(encoding="utf-8")
    # An absolute path of a machine is nobody else's business.
    given = {name: value for name, value in parameters.items() if name not in ("data_dir", "results_dir")}
    return {
        "parameters": given,
        "notebook_digest": hashlib.sha256(text.encode()).hexdigest(),
        "code_digest": code_digest(notebook_code(text)),
        **revision(),
        "versions": versions() | {"papermill": metadata.version("papermill")},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _of_record(source: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Seeds and hardware, which the record of the run knows; nothing where a page writes none."""
    folder = ROOT / parameters.get("results_dir", "results") / parameters.get("profile", "quick")
    path = folder / source.parent.name / f"{source.stem}.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {"seeds": record["seeds"], "hardware": record["provenance"]["hardware"]}


def _run(given: Path, partial: Path, parameters: dict[str, Any], log: Path | None, minutes: float) -> None:
    """Let papermill execute `given` into `partial`; raise `RuntimeError` with what became of the last cell."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(given), str(partial), parameters=parameters, kernel_name="python3", progress_bar=False,
            cwd=str(ROOT), stdout_file=log.open("w", encoding="utf-8") if log else None,
            execution_timeout=max(1, round(60 * minutes)),
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise RuntimeError(f"failed with {error.ename}: {error.evalue}") from None
    except CellTimeoutError:
        raise RuntimeError(f"was stopped at the time limit of {minutes:g} minutes") from None
    except DeadKernelError:
        raise RuntimeError("lost its process: something killed it; perhaps memory ran out") from None


def _failed_cell(path: Path) -> int:
    """Number of the code cell that was the last to be started, counted from 1 as in the chapter's source."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    own = [cell for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]
    return sum(bool(cell["metadata"].get("papermill", {}).get("start_time")) for cell in own if "outputs" in cell)


def _cpu_seconds() -> float:
    """What the kernel computed; on a busy machine the wall clock says more about the neighbours."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _slowest_cells(path: Path, most: int = 8) -> list[tuple[float, str]]:
    """Seconds and first line of the cells that took longest, and at least a second each."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    timed = [(cell["metadata"].get("kdcore", {}).get("seconds", 0.0), "".join(cell["source"])) for cell in cells]
    slow = sorted((pair for pair in timed if pair[0] >= 1), reverse=True)[:most]
    return [(seconds, source.strip().splitlines()[0][:80]) for seconds, source in slow]


def _from_file(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold a JSON object of parameters.")
    return given


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="part/method, method, or book/page")
    parser.add_argument("--profile", default=None, help="quick, cpu or gpu")
    parser.add_argument("--results-dir", default=None, help="where the record goes")
    parser.add_argument("--output", type=Path, default=None, help="the executed notebook")
    parser.add_argument("--time-limit", type=float, default=None, metavar="MINUTES", help="for each cell")
    parser.add_argument("--parameters", dest="file", type=Path, default=None, help="a JSON file of parameters")
    parser.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no τ
    try:
        given = _from_file(options.file) if options.file else {}
        given |= _parse(options.parameters)
        if options.profile:
            given["profile"] = options.profile
        if options.results_dir:
            given["results_dir"] = os.path.relpath(Path(options.results_dir).resolve(), ROOT)
        source = source_path(options.name)
        name = source.relative_to(ROOT).with_suffix("").as_posix().removeprefix("chapters/")
        output = options.output or ROOT / "_build" / "runs" / given.get("profile", "quick") / f"{name}.ipynb"
        seconds = execute(name, output.resolve(), given, minutes=options.time_limit)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{name}: {seconds:.0f} s ({_cpu_seconds():.0f} s of CPU time), {output}")
    for share, line in _slowest_cells(output):
        print(f"  {share:6.1f} s  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
