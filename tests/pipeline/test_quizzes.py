"""Quizzes: questions of a fixed form, and one page at the end of each part that has chapters."""

from __future__ import annotations

import pytest
import yaml


@pytest.fixture
def quiz(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "book" / "_extensions"))
    import quiz

    return quiz


def test_every_quiz_has_the_form_that_the_pages_need(quiz, root):
    for part, questions in quiz.read_quizzes(root / "book" / "quizzes.yml").items():
        assert len({entry["question"] for entry in questions}) == len(questions)
        places = []
        for entry in questions:
            texts = [choice["text"] for choice in entry["choices"]]
            assert len(set(texts)) == len(texts)
            places += [k for k, choice in enumerate(entry["choices"]) if choice.get("right")]
        assert len(places) == len(questions)
        assert len(set(places)) > 1, f"in {part} the right answer always stands at the same place"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["choices"][0].pop("why"), "'why' is a required property"),
        (lambda entry: [choice.pop("right", None) for choice in entry["choices"]], "logits 0 choices"),
        (lambda entry: [choice.update(right=True) for choice in entry["choices"]], "logits 0 choices"),
        (lambda entry: entry["choices"].pop(), "logits 0 choices"),
        (lambda entry: entry["choices"][0].update(text=20), "logits 0 choices 0 text: 20 is not of type 'string'"),
        (lambda entry: entry.update(hint="x"), "logits 0: Additional properties are not allowed ('hint'"),
    ],
)
def test_a_question_of_another_form_is_refused(quiz, root, tmp_path, change, message):
    quizzes = yaml.safe_load((root / "book" / "quizzes.yml").read_text(encoding="utf-8"))
    change(quizzes["logits"][0])
    (tmp_path / "quizzes.yml").write_text(yaml.safe_dump(quizzes, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^quizzes\.yml, ") as raised:
        quiz.read_quizzes(tmp_path / "quizzes.yml")
    assert message in str(raised.value)


def test_every_part_with_chapters_ends_with_its_quiz(quiz, root):
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    closed = []
    for part in toc["parts"]:
        pages = [entry["file"] for entry in part["chapters"]]
        folders = {page.split("/")[1] for page in pages if page.startswith("chapters/")}
        if not folders:
            continue
        (folder,) = folders
        assert pages[-1] == f"book/quiz_{folder}"
        assert f"```{{quiz}} {folder}\n" in (root / f"{pages[-1]}.md").read_text(encoding="utf-8")
        closed.append(folder)
    assert sorted(closed) == sorted({path.parent.name for path in (root / "chapters").glob("*/*.md")})
    assert sorted(closed) == sorted(quiz.read_quizzes(root / "book" / "quizzes.yml"))


def test_chapter_checks_notice_a_part_without_quiz(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "ci"))
    import check_chapters

    assert check_chapters.check_quizzes(root) == []
    (tmp_path / "book").mkdir()
    lines = (root / "_toc.yml").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "_toc.yml").write_text("".join(line for line in lines if "quiz_logits" not in line))
    (tmp_path / "book" / "quizzes.yml").write_text("features: []\n")
    problems = check_chapters.check_quizzes(tmp_path)
    assert "_toc.yml: the part of chapters/logits does not end with book/quiz_logits" in problems
    assert "book/quizzes.yml has no questions on foundations" in problems
    assert not any("features" in problem for problem in problems if problem.startswith("book/quizzes.yml"))
