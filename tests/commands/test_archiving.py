"""Archives: round trip, the same bytes, and every way in which one can be broken or hostile."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from kdcore.commands import archiving

MANIFEST = archiving.MANIFEST


def notebook(**outputs: str) -> bytes:
    """A notebook with one output of these types, which a keyword writes with underscores."""
    data = {kind.replace("__", "/").replace("_", "+"): text for kind, text in outputs.items()}
    cell = {
        "cell_type": "code", "id": "a", "execution_count": 1, "metadata": {}, "source": "x",
        "outputs": [{"output_type": "display_data", "metadata": {}, "data": data}],
    }  # fmt: skip
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return archiving.pack(["spherical_kd", "foundations/kd"])


def with_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    """What someone who can compute digests would send."""
    others = {name: content for name, content in files.items() if name != MANIFEST}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in others.items()]
    return others | {MANIFEST: "".join(lines).encode()}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_round_trip_gives_the_same_files_and_the_same_bytes(tmp_path, files, root):
    for name in ("first.zip", "second.zip"):
        archiving.archive(["foundations/kd", "spherical_kd"], output=tmp_path / name)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    found = archiving.read_archive(tmp_path / "first.zip")
    assert found == files
    archiving.archive(read=tmp_path / "first.zip", into=tmp_path / "into")
    unpacked = {p.relative_to(tmp_path / "into").as_posix(): p for p in (tmp_path / "into").rglob("*") if p.is_file()}
    assert unpacked.keys() == files.keys()
    for name, path in unpacked.items():
        if name.endswith(".ipynb"):  # of the last build, if there was one; sliders are active content
            inert = archiving.inert_notebook(json.loads(files[name]))
            assert json.loads(path.read_text(encoding="utf-8")) == inert
        else:
            assert path.read_bytes() == files[name], name
    record = root / "book" / "records" / "cpu" / "logits" / "spherical_kd.json"
    assert files["records/cpu/logits/spherical_kd.json"] == record.read_bytes()
    assert files["environment/constraints.txt"] == (root / "constraints.txt").read_bytes()
    sources = files["environment/sources-sha256.txt"].decode()
    digest = hashlib.sha256((root / "kdcore" / "logits" / "spherical_kd.py").read_bytes()).hexdigest()
    assert f"{digest}  kdcore/logits/spherical_kd.py\n" in sources
    assert "__pycache__" not in sources


def test_metadata_are_an_ro_crate_that_its_own_library_reads(tmp_path, files):
    archiving.archive(["kd", "spherical_kd"], output=tmp_path / "book.zip")
    crate = ROCrate(tmp_path / "book.zip")
    assert crate.name == "Knowledge transfer between networks, reproduced"
    assert crate.license == "https://spdx.org/licenses/MIT"
    assert crate.root_dataset["author"][0]["name"] == "The kdcore authors"
    assert crate.root_dataset["datePublished"].startswith("2026-")
    described = {entity.id: entity for entity in crate.get_entities() if entity.type == "File"}
    assert set(described) == set(files) - {archiving.METADATA}
    for name in set(described) - {MANIFEST}:
        assert described[name]["sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert described[name]["contentSize"] == str(len(files[name]))


def test_people_and_organisations_of_the_citation_are_authors():
    assert archiving._author({"family-names": "Curie", "given-names": "Marie"})["name"] == "Marie Curie"
    assert archiving._author({"name": "A group"}) == {"@type": "Organization", "name": "A group"}


def test_an_archive_without_records_and_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no chapter 'sperical_kd'\. Did you mean 'spherical_kd'"):
        archiving.pack(["sperical_kd"])
    with pytest.raises(ValueError, match="'book/ledger' is a page of the book and no chapter"):
        archiving.pack(["book/ledger"])
    with pytest.raises(ValueError, match="--into goes with --read"):
        archiving.archive(into=tmp_path)
    with pytest.raises(ValueError, match="leave the chapters out"):
        archiving.archive(["kd"], read=tmp_path / "book.zip")


def test_damaged_and_truncated_files_are_named(tmp_path, files):
    path = zipped(tmp_path / "book.zip", files)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"book.zip is no zip file, or a damaged one"):
        archiving.read_archive(path)
    at = whole.index(b"records/cpu/foundations/kd.json") + 2000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"book.zip is no zip file, or a damaged one"):
        archiving.read_archive(path)


def test_changed_missing_and_added_files_are_named(tmp_path, files):
    changed = files | {"LICENSE": b"mine"}
    with pytest.raises(ValueError, match=r"LICENSE is not what was archived"):
        archiving.read_archive(zipped(tmp_path / "changed.zip", changed))
    missing = {name: content for name, content in files.items() if name != "LICENSE"}
    with pytest.raises(ValueError, match=r"LICENSE is missing"):
        archiving.read_archive(zipped(tmp_path / "missing.zip", missing))
    with pytest.raises(ValueError, match=r"new\.txt is not in the manifest"):
        archiving.read_archive(zipped(tmp_path / "added.zip", files | {"new.txt": b"x"}))
    with pytest.raises(ValueError, match="is no archive of kdcore"):
        archiving.read_archive(zipped(tmp_path / "other.zip", {"a.txt": b"x"}))


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/evil.txt", "records/../../evil.txt", "C:\\evil.txt", "..\\evil.txt", "a\nb"]
)
def test_paths_that_lead_out_are_refused_and_nothing_is_written(tmp_path, files, name):
    path = zipped(tmp_path / "book.zip", with_manifest(files | {name: b"x"}))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="would leave the folder"):
        archiving.archive(read=path, into=tmp_path / "into")
    assert set(tmp_path.rglob("*")) == before


def test_links_in_an_archive_are_refused(tmp_path, files):
    path = zipped(tmp_path / "book.zip", with_manifest(files | {"link": b"/etc"}))
    link = zipfile.ZipInfo("link2")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="'link2', which is a link or a device"):
        archiving.archive(read=path, into=tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_folder_that_is_a_link_or_not_empty_is_not_written_through(tmp_path, files):
    path = zipped(tmp_path / "book.zip", files)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "records").symlink_to(outside)
    with pytest.raises(ValueError, match="is not empty"):
        archiving.archive(read=path, into=tmp_path / "into")
    assert not list(outside.iterdir())


def test_bombs_are_refused_before_they_unpack(tmp_path, files, monkeypatch):
    path = zipped(tmp_path / "book.zip", with_manifest(files | {"bomb": bytes(40 << 20)}))
    with pytest.raises(ValueError, match="would unpack to 40 MiB from next to nothing"):
        archiving.read_archive(path)
    monkeypatch.setattr(archiving, "_MOST_BYTES", 1 << 16)
    with pytest.raises(ValueError, match="it is not unpacked"):
        archiving.read_archive(zipped(tmp_path / "large.zip", files))
    monkeypatch.setattr(archiving, "_MOST_FILES", 3)
    with pytest.raises(ValueError, match="holds more than 3 files"):
        archiving.read_archive(zipped(tmp_path / "many.zip", files))


def test_a_file_that_lies_about_its_size_is_damaged(tmp_path, files):
    path = zipped(tmp_path / "book.zip", with_manifest(files | {"bomb": bytes(1 << 20)}))
    content = path.read_bytes()
    # The directory at the end says one byte; the data unpack to a MiB.
    at = content.rindex(b"bomb") - 46 + 24
    path.write_bytes(content[:at] + (1).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(ValueError, match="damaged"):
        archiving.read_archive(path)


def test_doubled_names_are_refused(tmp_path, files):
    path = zipped(tmp_path / "book.zip", files)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("LICENSE", "mine")
    with pytest.raises(ValueError, match="'LICENSE' twice"):
        archiving.read_archive(path)


OLD_FORM = b'{"worksheets": [{"cells": []}], "metadata": {}, "nbformat": 3, "nbformat_minor": 0}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("records/cpu/logits/kd.json", b'{"schema": 1', "is corrupt"),
        ("records/cpu/logits/kd.json", b"[" * 100_000, "is corrupt"),
        ("notebooks/logits/kd.ipynb", b'{"cells": 1}', "is no notebook"),
        ("notebooks/logits/kd.ipynb", b"\x80\x04", "is no notebook"),
        ("notebooks/logits/kd.ipynb", OLD_FORM, "is no notebook"),
        ("ro-crate-metadata.json", b"[]", "is no RO-Crate metadata"),
        ("ro-crate-metadata.json", b'{"@graph": []}', "describes no root"),
    ],
)
def test_files_that_are_not_what_they_pass_for_are_refused(tmp_path, files, name, content, message):
    with pytest.raises(ValueError, match=message):
        archiving.read_archive(zipped(tmp_path / "book.zip", with_manifest(files | {name: content})))


def test_a_record_under_another_name_and_with_markup_is_refused(tmp_path, files):
    name = "records/cpu/foundations/kd.json"
    moved = with_manifest(files | {"records/cpu/logits/sinkd.json": files[name]})
    with pytest.raises(ValueError, match="is a record of foundations/kd at cpu"):
        archiving.read_archive(zipped(tmp_path / "moved.zip", moved))
    record = json.loads(files[name])
    record["claims"][0]["statement"] = "<script>alert(1)</script>"
    marked = with_manifest(files | {name: json.dumps(record).encode()})
    with pytest.raises(ValueError, match="holds '<s' in the text"):
        archiving.read_archive(zipped(tmp_path / "marked.zip", marked))


ATTACKS = {
    "text__html": [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '<a href="javascript:alert(1)">x</a>',
        '<a href="data:text/html,<script>alert(1)</script>">x</a>',
        "<svg onload=alert(1)></svg>",
        '<iframe src="https://example.org"></iframe>',
        '<object data="x.swf"></object><embed src="x">',
        "<style>@import 'https://example.org/x.css'</style>",
        '<form action="https://example.org"><input name="a"></form>',
        '<meta http-equiv="refresh" content="0;url=https://example.org">',
        '<p style="background:url(https://example.org)">x</p>',
        "<math><mtext><script>alert(1)</script></mtext></math>",
        '<img src="data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+">',
    ],
    "text__markdown": ["<script>alert(1)</script>", "[x](javascript:alert(1))", "<img src=x onerror=alert(1)>"],
    "image__svg_xml": ["<svg onload=alert(1) xmlns='http://www.w3.org/2000/svg'></svg>"],
    "application__javascript": ["alert(1)"],
    "application__vnd.jupyter.widget-view_json": ["<script>alert(1)</script>"],
    "image__png": ['AAAA" onerror="alert(1)'],
    "text__latex": [r"$\href{javascript:alert(1)}{x}$"],
}
ACTIVE = (
    "<script", "onerror=", "javascript:", "onload", "<iframe", "<object", "<embed", "<style", "<form", "<meta",
    "style=", "image/svg", "text/html,", "alert(1)</", "<svg", "<math",
)  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS)
def test_unpacked_notebooks_hold_nothing_that_runs(tmp_path, files, kind):
    for number, attack in enumerate(ATTACKS[kind]):
        hostile = with_manifest(files | {"notebooks/logits/kd.ipynb": notebook(text__plain="x", **{kind: attack})})
        path, into = zipped(tmp_path / f"{number}.zip", hostile), tmp_path / f"into{number}"
        archiving.archive(read=path, into=into)
        text = (into / "notebooks" / "logits" / "kd.ipynb").read_text(encoding="utf-8")
        live = re.sub(r"&lt;[^<>]*>", "", text)  # an escaped tag is text
        assert [word for word in ACTIVE if word in live] == [], text
        assert json.loads(text)["cells"][0]["outputs"][0]["data"]["text/plain"] == "x"


def test_pictures_tables_and_plain_markdown_stay(files):
    kept = {
        "text/html": '<table><tr><td>1</td></tr></table><img src="data:image/png;base64,AAAA" alt="a plot">',
        "text/markdown": "**a** < 2, $x<y$ <br> [x](https://example.org)",
        "image/png": "AAAA",
    }
    cell = {"cell_type": "code", "metadata": {}, "source": "x", "outputs": [{"data": dict(kept)}]}
    markdown = {"cell_type": "markdown", "metadata": {}, "source": ["a\n", "<details><summary>b</summary>"]}
    inert = archiving.inert_notebook({"cells": [cell, markdown], "metadata": {"widgets": {"state": "<script>"}}})
    data = inert["cells"][0]["outputs"][0]["data"]
    assert "<td>1</td>" in data["text/html"]
    assert 'src="data:image/png;base64,AAAA"' in data["text/html"]
    assert data["text/markdown"] == kept["text/markdown"].replace("x<y", "x&lt;y")
    assert data["image/png"] == "AAAA"
    assert inert["cells"][1]["source"] == "a\n<details><summary>b</summary>"
    assert inert["metadata"] == {}


def test_nothing_is_left_of_an_archive_that_could_not_be_written(tmp_path, monkeypatch):
    old = tmp_path / "book.zip"
    old.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        archiving.archive(["kd"], output=old)
    assert [path.name for path in tmp_path.iterdir()] == ["book.zip"]
    assert old.read_bytes() == b"old"
