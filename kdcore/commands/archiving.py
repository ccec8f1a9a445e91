"""`kdcore archive`: records, executed notebooks and their environment in one zip, an RO-Crate; and reading one back.

An archive from elsewhere is data: it is checked as a whole before anything of it is written, and its notebooks are
written without what a browser would run.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from kdcore.commands.chapters import complete_chapter
from kdcore.commands.checkout import pipeline, root

__all__ = ["EXAMPLES", "archive", "inert_notebook", "pack", "read_archive"]

EXAMPLES = (
    "kdcore archive --output book.zip",
    "kdcore archive spherical_kd kd",
    "kdcore archive --read book.zip --into unpacked",
)
MANIFEST = "manifest-sha256.txt"
METADATA = "ro-crate-metadata.json"
_SOURCES = "environment/sources-sha256.txt"
_VERSIONS = "environment/versions.json"
_ENVIRONMENT = ("constraints.txt", "environment.yml", "pyproject.toml")
_TYPES = {".json": "application/json", ".ipynb": "application/x-ipynb+json", ".cff": "application/yaml"}
_TYPES |= {".yml": "application/yaml", ".toml": "application/toml"}
_MOST_FILES, _MOST_BYTES, _MOST_RATIO = 10_000, 1 << 30, 200
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_PLAIN_TAG = re.compile(r"</?(?:details|summary|br|sub|sup|b|i|em|strong)\s*/?>")
_KEPT_TYPES = ("text/plain", "text/html", "text/markdown", "text/latex", "image/png", "image/jpeg")
_ATTRIBUTES = {"*": {"class", "role", "aria-label", "tabindex"}, "a": {"href"}, "th": {"scope", "colspan", "rowspan"}}
_ATTRIBUTES |= {"td": {"colspan", "rowspan"}, "img": {"src", "alt", "width", "height"}}


def archive(
    chapters: Annotated[
        list[str] | None, typer.Argument(help="Chapters; all if left out.", autocompletion=complete_chapter)
    ] = None,
    output: Annotated[Path, typer.Option(help="The zip to write.")] = Path("book.zip"),
    read: Annotated[Path | None, typer.Option(help="Check this archive instead of writing one.")] = None,
    into: Annotated[Path | None, typer.Option(help="With --read: an empty or new folder to unpack into.")] = None,
) -> None:
    """Write an archive of records and executed notebooks, or check one and unpack it.

    Args:
        chapters: method or part/method.
        output: overwritten in one step.
        read: an archive; every digest, record and notebook in it is checked.
        into: where its files go, if all are in order.

    Raises:
        ValueError: unknown chapter, nothing to archive, a corrupt archive, or `into` without `read`.

    Example:
        >>> archive(["no_such_method"])
        Traceback (most recent call last):
        ValueError: no chapter 'no_such_method'...
    """
    if read is not None:
        if chapters:
            raise ValueError("--read takes the whole archive; leave the chapters out.")
        files = read_archive(read)
        typer.echo(_described(read, files))
        if into is not None:
            changed = _unpack(files, into)
            typer.echo(f"Unpacked into {into}; active content was taken out of {changed} notebooks.")
        return
    if into is not None:
        raise ValueError("--into goes with --read FILE.")
    files = pack(chapters or [])
    _write_zip(files, output)
    typer.echo(_described(output, files))


def pack(chapters: list[str]) -> dict[str, bytes]:
    """The files of an archive of these chapters of the checkout, or of all, by path; manifest and metadata included.

    Raises:
        ValueError: unknown chapter; a record is corrupt; there is no record.

    Example:
        >>> files = pack(["spherical_kd"])
        >>> "records/cpu/logits/spherical_kd.json" in files, "ro-crate-metadata.json" in files
        (True, True)
    """
    here = root()
    names = [_chapter_name(chapter) for chapter in chapters]
    found = _records(here, names) | _notebooks(here, names)
    if not any(path.startswith("records/") for path in found):
        raise ValueError("there is no record to archive; build the book or run a chapter first.")
    for name in ("LICENSE", "CITATION.cff"):
        found[name] = (here / name).read_bytes()
    for name in _ENVIRONMENT:
        found[f"environment/{name}"] = (here / name).read_bytes()
    found[_VERSIONS] = _json(_origin())
    found[_SOURCES] = _listing(_digests(_sources(here)))
    found[METADATA] = _json(_crate(here, found))
    found[MANIFEST] = _listing(_digests(found))
    return dict(sorted(found.items()))


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of an archive by path, once every one of them is known to be what the manifest says.

    Nothing is written. Paths that lead out of the folder, links, encrypted, doubled, missing or unlisted files, and
    content that unpacks to far more than it should are refused; records must fit their schema, notebooks theirs.

    Raises:
        ValueError: the archive is not in order; says what is wrong.

    Example:
        >>> read_archive(Path(__file__))
        Traceback (most recent call last):
        ValueError: ...archiving.py is no zip file...
    """
    try:
        with zipfile.ZipFile(path) as opened:
            _check_entries(path, opened.infolist())
            files = {entry.filename: opened.read(entry) for entry in opened.infolist() if not entry.is_dir()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is no zip file, or a damaged one: {error}.") from error
    _check_manifest(path, files)
    for name, content in files.items():
        _check_content(path, name, content)
    return files


def inert_notebook(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a notebook in which nothing is left that a browser would run.

    HTML outputs keep text, tables and PNG pictures; scripts, styles, event handlers, frames, SVG and addresses of
    programs go. In Markdown, of cells and of outputs, HTML tags other than a few without attributes are escaped.

    Example:
        >>> cell = {"cell_type": "markdown", "metadata": {}, "source": "<b>Hello</b> <img src=x onerror=alert(1)>"}
        >>> inert_notebook({"cells": [cell], "metadata": {}})["cells"][0]["source"]
        '<b>Hello</b> &lt;img src=x onerror=alert(1)>'
    """
    copy = json.loads(json.dumps(notebook))
    copy["metadata"].pop("widgets", None)  # state of widgets, HTML among it
    for cell in copy["cells"]:
        cell.pop("attachments", None)
        if cell["cell_type"] != "code":
            cell["source"] = _inert_markdown(_text(cell["source"]))
        for output in cell.get("outputs", []):
            if "data" in output:
                kept = {kind: _text(value) for kind, value in output["data"].items() if kind in _KEPT_TYPES}
                output["data"] = {kind: _inert(kind, value) for kind, value in kept.items()}
                output["metadata"] = {}
    return copy


def _chapter_name(given: str) -> str:
    """part/method of a chapter, by either of its names."""
    source = pipeline("execute").source_path(given)
    if source.parent.parent.name != "chapters":
        raise ValueError(f"{given!r} is a page of the book and no chapter.")
    return f"{source.parent.name}/{source.stem}"


def _records(here: Path, names: list[str]) -> dict[str, bytes]:
    from kdcore.study.records import read_record

    found = {}
    for folder in (here / "_build" / "records", here / "book" / "records"):
        for path in sorted(folder.glob("*/*/*.json")):
            record = read_record(path)
            if not names or record["chapter"] in names:
                found[f"records/{record['profile']}/{record['chapter']}.json"] = path.read_bytes()
    return found


def _notebooks(here: Path, names: list[str]) -> dict[str, bytes]:
    folder = here / "_build" / "executed" / "chapters"
    paths = [path for path in sorted(folder.glob("*/*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    named = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return {f"notebooks/{name}.ipynb": path.read_bytes() for name, path in named.items() if not names or name in names}


def _sources(here: Path) -> dict[str, bytes]:
    """Everything that a number may depend on: package, chapters, pipeline."""
    paths = [path for folder in ("kdcore", "chapters", "ci") for path in (here / folder).rglob("*")]
    return {
        path.relative_to(here).as_posix(): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }


def _origin() -> dict[str, Any]:
    from kdcore.versions import revision, versions

    return {"versions": versions()} | revision()


def _crate(here: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """JSON-LD by the RO-Crate specification 1.2: title, authors and licence as CITATION.cff has them, and each file."""
    import yaml
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    citation = yaml.safe_load((here / "CITATION.cff").read_text(encoding="utf-8"))
    crate = ROCrate(version="1.2")
    crate.name, crate.description = citation["title"], " ".join(citation["abstract"].split())
    crate.license = f"https://spdx.org/licenses/{citation['license']}"
    crate.datePublished = datetime.datetime.fromisoformat(str(citation["date-released"]))
    crate.root_dataset["version"] = str(citation["version"])
    crate.root_dataset["isBasedOn"] = citation["repository-code"]
    authors = [
        crate.add(ContextEntity(crate, f"#author-{number}", properties=_author(author)))
        for number, author in enumerate(citation["authors"], start=1)
    ]
    crate.root_dataset["author"] = authors
    for name, content in sorted(files.items()):
        properties = {
            "name": _title(name, content),
            "encodingFormat": _TYPES.get(PurePosixPath(name).suffix, "text/plain"),
            "contentSize": str(len(content)),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        crate.add_file(StringIO(), name, properties=properties)
    crate.add_file(StringIO(), MANIFEST, properties={"name": "SHA-256 of every other file"})
    return crate.metadata.generate()


def _author(author: Mapping[str, str]) -> dict[str, str]:
    """A person has names of two kinds in CITATION.cff, an organisation one."""
    if "family-names" in author:
        return {"@type": "Person", "name": f"{author.get('given-names', '')} {author['family-names']}".strip()}
    return {"@type": "Organization", "name": author["name"]}


def _title(name: str, content: bytes) -> str:
    if name.startswith("records/"):
        record = json.loads(content)
        return f"Record of {record['chapter']} at profile {record['profile']}"
    return f"Executed notebook of {name[10:-6]}" if name.startswith("notebooks/") else PurePosixPath(name).name


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _listing(digests: Mapping[str, str]) -> bytes:
    """As `sha256sum --check` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def _write_zip(files: Mapping[str, bytes], output: Path) -> None:
    """The same files give the same bytes: order, times and permissions are fixed."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as opened:
            for name, content in files.items():
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                opened.writestr(entry, content)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Before a byte is unpacked."""
    if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise ValueError(f"{path} holds more than {_MOST_FILES} files or {_MOST_BYTES >> 20} MiB; it is not unpacked.")
    names = [entry.filename for entry in entries]
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if entry.filename.startswith("/") or ".." in parts or not parts or re.search(r"[\\:\x00-\x1f]", entry.filename):
            raise ValueError(f"{path} holds {entry.filename!r}, which would leave the folder it is unpacked into.")
        if entry.create_system == 3 and stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{path} holds {entry.filename!r}, which is a link or a device, not a file.")
        if entry.flag_bits & 1:
            raise ValueError(f"{path} holds {entry.filename!r}, which is encrypted.")
        if entry.file_size > 1 << 20 and entry.file_size > _MOST_RATIO * max(1, entry.compress_size):
            size = f"{entry.file_size >> 20} MiB from next to nothing"
            raise ValueError(f"{path} holds {entry.filename!r}, which would unpack to {size}.")
    doubled = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if doubled:
        raise ValueError(f"{path} holds {min(doubled)!r} twice.")


def _check_manifest(path: Path, files: Mapping[str, bytes]) -> None:
    if MANIFEST not in files or METADATA not in files:
        raise ValueError(f"{path} is no archive of kdcore: it has no {MANIFEST} or no {METADATA}.")
    lines = [_LINE.fullmatch(line) for line in files[MANIFEST].decode("utf-8", "replace").splitlines()]
    listed = {line[2]: line[1] for line in lines if line}
    found = _digests({name: content for name, content in files.items() if name != MANIFEST})
    wrong = [f"{name} is missing" for name in listed if name not in found]
    wrong += [f"{name} is not in the manifest" for name in found if name not in listed]
    wrong += [f"{name} is not what was archived" for name in found if name in listed and listed[name] != found[name]]
    if wrong:
        raise ValueError(f"{path} is corrupt: {'; '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}.")


def _check_content(path: Path, name: str, content: bytes) -> None:
    """Records, notebooks and metadata must be what they pass for."""
    import nbformat

    from kdcore.study.records import parse_record

    if name.startswith("records/"):
        record = parse_record(content, f"{path}: {name}")
        if name != f"records/{record['profile']}/{record['chapter']}.json":
            raise ValueError(f"{path}: {name} is a record of {record['chapter']} at {record['profile']}.")
    elif name.startswith("notebooks/"):
        try:
            nbformat.validate(nbformat.from_dict(json.loads(content)), version=4)  # refuses older forms
        except Exception as error:  # whatever it stumbles over: no JSON, other fields, brackets without end
            raise ValueError(f"{path}: {name} is no notebook: {str(error)[:200]}") from error
    elif name == METADATA:
        try:
            graph = json.loads(content)["@graph"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: {name} is no RO-Crate metadata ({error}).") from error
        if not any(entity.get("@id") == "./" for entity in graph):
            raise ValueError(f"{path}: {name} describes no root data set.")


def _described(path: Path, files: Mapping[str, bytes]) -> str:
    counts = {kind: sum(name.startswith(f"{kind}/") for name in files) for kind in ("records", "notebooks")}
    size = f"{len(files)} files, {sum(map(len, files.values())) / 2**20:.1f} MiB"
    return f"{path}: {counts['records']} records, {counts['notebooks']} executed notebooks; all whole: {size}."


def _unpack(files: Mapping[str, bytes], into: Path) -> int:
    """Write checked files into a folder; return how many notebooks lost active content."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ValueError(f"{into} is not empty; name a new folder.")
    changed = 0
    for name, content in files.items():
        if name.endswith(".ipynb"):
            notebook = json.loads(content)
            inert = inert_notebook(notebook)
            if inert != notebook:
                content, changed = _json(inert), changed + 1
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return changed


def _text(value: Any) -> str:
    """Notebooks hold texts whole or as lists of lines."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _inert(kind: str, text: str) -> str:
    if kind == "text/html":
        return _inert_html(text)
    if kind.startswith("image/"):  # it becomes part of an attribute, which it could otherwise end
        return text if re.fullmatch(r"[A-Za-z0-9+/=\r\n]*", text) else ""
    return text if kind == "text/plain" else _inert_markdown(text)


def _inert_markdown(text: str) -> str:
    text = re.sub(r"(java|vb)(script\s*):", r"\1\2", text, flags=re.I)
    kept = re.compile(f"({_PLAIN_TAG.pattern})|<(?=[A-Za-z/!?])", re.I)
    return kept.sub(lambda found: found[1] or "&lt;", text)


def _inert_html(text: str) -> str:
    import nh3

    def attribute(tag: str, name: str, value: str) -> str | None:
        is_picture = tag == "img" and name == "src" and value.startswith("data:image/png;base64,")
        return value if is_picture or not re.match(r"\s*data\s*:", value, re.I) else None

    return nh3.clean(
        text, attributes=_ATTRIBUTES, attribute_filter=attribute, url_schemes={"http", "https", "mailto", "data"},
        clean_content_tags={"script", "style", "svg", "math", "iframe", "object"}, generic_attribute_prefixes=set(),
    )  # fmt: skip
