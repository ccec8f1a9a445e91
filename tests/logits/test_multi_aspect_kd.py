"""Multi-aspect distillation: both terms and their gradients, sources of answers, a real multimodal model, controls."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.logits.multi_aspect_kd import (
    MEASURES,
    AspectTable,
    ClassColumns,
    LanguageModelAspects,
    MultiAspectDistillation,
    MultiAspectLoss,
    ProceduralOracle,
    aspect_loss,
    class_mean_answers,
    flipped_answers,
    hard_answers,
    measure,
    shuffled_answers,
    single_token,
    split_outputs,
    with_aspects,
    yes_probability,
)
from kdcore.models import MLP
from kdcore.training import Budget, Supervised, fit, predict, seeded

CLASSES, QUESTIONS = 4, 6
LABELS = torch.tensor([0, 3, 1, 2, 2])


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 * torch.randn(5, CLASSES + QUESTIONS, generator=generator, dtype=torch.float64)
    answers = torch.rand(5, QUESTIONS, generator=generator, dtype=torch.float64)
    return outputs.requires_grad_(), answers


def gradient(loss, outputs, answers, labels=LABELS):
    return torch.autograd.grad(loss(outputs, answers, labels), outputs)[0]


@pytest.mark.parametrize("case", reference_cases("multi-aspect-kd"))
def test_matches_published_figures(case):
    inputs, settings_ = case["inputs"], case["hyperparameters"]
    outputs = torch.tensor(inputs["student_outputs"], dtype=torch.float64, requires_grad=True)
    answers = torch.tensor(inputs["aspect_targets"], dtype=torch.float64)
    labels = torch.tensor(inputs["labels"])
    loss = MultiAspectLoss(settings_["num_classes"], settings_["alpha"], settings_["ce_weight"])
    hard, aspects = loss.terms(outputs, answers, labels)
    class_logits, aspect_logits = split_outputs(outputs, settings_["num_classes"])
    assert aspect_logits.shape[1] == settings_["num_aspects"]
    found = {
        "loss_ce": hard,
        "loss_makd_times_alpha": aspects,
        "total": loss(outputs, answers, labels),
        "bce_mean_unweighted": aspect_loss(aspect_logits, answers),
        "class_logits": class_logits,
        "grad_student_outputs": gradient(loss, outputs, answers, labels),
    }
    assert_published(found, case)


# The loss


def test_alpha_zero_is_cross_entropy_on_class_columns():
    outputs, answers = example()
    loss = MultiAspectLoss(CLASSES, alpha=0.0)
    torch.testing.assert_close(loss(outputs, answers, LABELS), F.cross_entropy(outputs[:, :CLASSES], LABELS))
    assert not gradient(loss, outputs, answers)[:, CLASSES:].any()


def test_each_gradient_knows_only_its_own_target():
    outputs, answers = example()
    loss = MultiAspectLoss(CLASSES, alpha=3.0)
    first = gradient(loss, outputs, answers)
    torch.testing.assert_close(gradient(loss, outputs, 1 - answers)[:, :CLASSES], first[:, :CLASSES], rtol=0, atol=0)
    torch.testing.assert_close(
        gradient(loss, outputs, answers, (LABELS + 1) % CLASSES)[:, CLASSES:], first[:, CLASSES:], rtol=0, atol=0
    )


def test_gradient_by_hand():
    outputs, answers = example()
    wanted = 3.0 * (outputs.detach()[:, CLASSES:].sigmoid() - answers) / (5 * QUESTIONS)
    torch.testing.assert_close(gradient(MultiAspectLoss(CLASSES, 3.0), outputs, answers)[:, CLASSES:], wanted)
    assert torch.autograd.gradcheck(lambda o: MultiAspectLoss(CLASSES, 3.0)(o, answers, LABELS), outputs)


@given(st.lists(st.floats(0.02, 0.98), min_size=1, max_size=6), st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_least_value_is_the_entropy_of_the_answers(values, away):
    answers = torch.tensor([values], dtype=torch.float64)
    best = aspect_loss(answers.logit(), answers)
    entropy = -(answers * answers.log() + (1 - answers) * (1 - answers).log()).mean()
    torch.testing.assert_close(best, entropy)
    assert aspect_loss(answers.logit() + away, answers) >= best - 1e-12
    assert aspect_loss(torch.zeros_like(answers), answers).item() == pytest.approx(math.log(2))


def test_order_and_number_of_questions():
    outputs, answers = example()
    v, order = outputs.detach()[:, CLASSES:], torch.randperm(QUESTIONS)
    torch.testing.assert_close(aspect_loss(v[:, order], answers[:, order]), aspect_loss(v, answers))
    torch.testing.assert_close(aspect_loss(v.repeat(1, 3), answers.repeat(1, 3)), aspect_loss(v, answers))
    torch.testing.assert_close(aspect_loss(v.repeat(3, 1), answers.repeat(3, 1)), aspect_loss(v, answers))


def test_weights():
    outputs, answers = example()
    hard, aspects = MultiAspectLoss(CLASSES, 4.0, 0.5).terms(outputs, answers, LABELS)
    torch.testing.assert_close(hard, 0.5 * F.cross_entropy(outputs[:, :CLASSES], LABELS))
    torch.testing.assert_close(aspects, 4 * aspect_loss(outputs[:, CLASSES:], answers))


def test_no_gradient_reaches_the_answers():
    outputs, answers = example()
    answers.requires_grad_()
    MultiAspectLoss(CLASSES)(outputs, answers, LABELS).backward()
    assert answers.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_sure_logits_in_low_precision(dtype):
    outputs = torch.tensor([[200.0, -200.0, 90.0, -90.0]], dtype=dtype)
    found = MultiAspectLoss(2, 1.0)(outputs, torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert found.item() == pytest.approx(490.0, rel=1e-2)


# Class columns only


def test_class_columns_predict_whatever_the_aspects_say():
    student = nn.Linear(3, CLASSES + QUESTIONS)
    inputs = torch.randn(8, 3)
    before = ClassColumns(student, CLASSES)(inputs)
    with torch.no_grad():
        student.bias[CLASSES:] += 100
    assert torch.equal(ClassColumns(student, CLASSES)(inputs), before)
    # The published validation takes the largest of all outputs, here always a "yes", which is no class.
    assert bool((student(inputs).argmax(dim=1) >= CLASSES).all())


# Answers and controls


def test_yes_probability_is_a_softmax_of_two():
    yes, no = torch.randn(2, 7)
    torch.testing.assert_close(yes_probability(yes, no), torch.stack([yes, no]).softmax(dim=0)[0])
    assert yes_probability(torch.tensor([500.0]), torch.tensor([-500.0])).item() == 1


def test_controls_keep_what_they_should():
    _, answers = example()
    labels = torch.tensor([0, 3, 0, 3, 0])
    assert set(hard_answers(answers).unique().tolist()) == {0.0, 1.0}
    means = class_mean_answers(answers, labels)
    torch.testing.assert_close(means.mean(dim=0), answers.mean(dim=0))
    assert torch.equal(means[0], means[2])
    torch.testing.assert_close(means[1], (answers[1] + answers[3]) / 2)
    mixed = shuffled_answers(answers, seed=3)
    assert torch.equal(mixed.sort(dim=0).values, answers.sort(dim=0).values)
    assert torch.equal(mixed, shuffled_answers(answers, seed=3))
    assert not torch.equal(mixed, answers)
    assert torch.equal(flipped_answers(answers, 0.0, seed=0), answers)
    many = torch.full((2000, 5), 0.9)
    assert flipped_answers(many, 0.3, seed=0).mean().item() == pytest.approx(0.7 * 0.9 + 0.3 * 0.1, abs=0.01)


def picture(*lines):
    return torch.tensor([[float(mark == "#") for mark in line] for line in lines])[None, None]


EIGHT = picture(
    "..####..", "..#..#..", "..#..#..", "..####..", "..#..#..", "..#..#..", "..#..#..", "..####.."
)  # fmt: skip
ONE = picture("....#...", "....#...", "....#...", "....#...", "....#...", "....#...", "....#...", "....#...")
DIAGONAL = picture(".......#", "......#.", ".....#..", "....#...", "...#....", "..#.....", ".#......", "#.......")


def answered(image):
    return dict(zip(MEASURES, measure(image)[0].tolist(), strict=True))


def test_measures_of_drawn_figures():
    eight, one, diagonal = answered(EIGHT), answered(ONE), answered(DIAGONAL)
    assert [found["Does it enclose a hole?"] for found in (eight, one, diagonal)] == [2, 0, 0]
    assert eight["Is there a hole in the upper half?"] > 0
    assert one["Is there a hole in the upper half?"] == 0
    assert diagonal["Is it drawn in several pieces?"] == 1  # pieces that touch at corners are connected
    assert diagonal["Does it lean to the right?"] == pytest.approx(1.0, abs=1e-3)
    assert answered(DIAGONAL.flip(3))["Does it lean to the right?"] == pytest.approx(-1.0, abs=1e-3)
    assert one["Is it wide?"] < eight["Is it wide?"]
    assert eight["Is it symmetric from left to right?"] == pytest.approx(1.0)
    assert eight["Does a horizontal line through the middle cross it more than once?"] == 2
    assert eight["Does a vertical line through the middle cross it more than twice?"] == 3
    assert one["Is there a tall vertical stroke?"] == 1
    assert measure(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_oracle_is_about_the_training_images():
    images = digits(train_size=200).train.inputs
    oracle = ProceduralOracle(images)
    answers = oracle.answer(images, [])
    assert answers.shape == (200, 20)
    assert bool((answers >= 0).all())
    assert bool((answers <= 1).all())
    # The same question gets the same column, whatever else is asked.
    part = ProceduralOracle(images, questions=MEASURES[5:2:-1])
    torch.testing.assert_close(part.answer(images, []), answers[:, [5, 4, 3]])
    sharp = ProceduralOracle(images, slope=1e3).answer(images, [])
    assert ((sharp < 0.01) | (sharp > 0.99)).float().mean() > 0.95


def test_oracle_at_another_resolution():
    small, large = digits(train_size=200).train.inputs, digits(train_size=200, size=14).train.inputs
    first, second = (ProceduralOracle(images).answer(images, []) for images in (small, large))
    correlations = [np.corrcoef(first[:, q], second[:, q])[0, 1] for q in range(20)]
    assert np.median(correlations) > 0.8


def test_table_returns_what_was_asked(tmp_path):
    images = digits(train_size=20).train.inputs
    oracle, keys = ProceduralOracle(images), [f"{row}.png" for row in range(20)]
    AspectTable.ask(oracle, images, keys).write(tmp_path / "answers.json")
    table = AspectTable.read(tmp_path / "answers.json")
    assert table.questions == oracle.questions
    backwards = list(reversed(keys))
    torch.testing.assert_close(table.answer(images, backwards), oracle.answer(images.flip(0), backwards))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "must hold an object with questions and answers"),
        ({"questions": ["A?"]}, "must hold an object with questions and answers"),
        ([1, 2], "must hold an object with questions and answers"),
        ({"questions": [], "answers": {}}, "questions must be different, and at least one"),
        ({"questions": ["A?", "A?"], "answers": {}}, "questions must be different"),
        ({"questions": ["A?"], "answers": {"x": [0.1, 0.2]}}, r"answers of image 'x': .* \(1, 1\), got \(1, 2\)"),
        ({"questions": ["A?"], "answers": {"x": [1.2]}}, r"answers of image 'x': .* in \[0, 1\]"),
        ({"questions": ["A?"], "answers": {"x": [float("nan")]}}, "answers of image 'x': .* must be finite"),
    ],
)
def test_table_rejects_bad_files(tmp_path, content, message):
    path = tmp_path / "answers.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        AspectTable.read(path)


# A multimodal model, tiny and untrained, built from its configuration


WORDS = ["<pad>", "<unk>", "<image>", "Yes", "No", "Is", "it", "red", "round", "?", "USER:", "ASSISTANT:", "or", "big"]


@pytest.fixture(scope="module")
def vision_language():
    """Model and processor of the LLaVA family, a few thousand weights."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=16),
        text_config=transformers.LlamaConfig(
            **sizes, num_key_value_heads=2, vocab_size=len(WORDS), max_position_embeddings=64, pad_token_id=0
        ),
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    with seeded(0):
        model = transformers.LlavaForConditionalGeneration(config)
    size = {"height": 16, "width": 16}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    processor = transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return model, processor


PROMPT = "USER: <image> {question} Yes or No ASSISTANT:"


def test_asks_a_multimodal_model(vision_language):
    from torchvision.transforms.functional import to_pil_image

    model, processor = vision_language
    questions = ["Is it red ?", "Is it round or big ?"]  # of unequal length: one is padded
    source = LanguageModelAspects(model, processor, questions, prompt=PROMPT)
    assert (source.yes, source.no) == (WORDS.index("Yes"), WORDS.index("No"))
    images = torch.rand(3, 1, 8, 8)
    answers = source.answer(images, ["a", "b", "c"])
    assert answers.shape == (3, 2)
    for row, image in enumerate(images):
        for column, question in enumerate(questions):
            inputs = processor(
                images=to_pil_image(image).convert("RGB"), text=PROMPT.format(question=question), return_tensors="pt"
            )
            generated = model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            first = generated.logits[0][0]
            wanted = first[[source.yes, source.no]].softmax(dim=0)[0]
            assert answers[row, column].item() == pytest.approx(wanted.item(), abs=1e-5)
    assert len({round(value, 5) for value in answers.flatten().tolist()}) > 3  # image and question both matter


def test_model_answers_become_a_table_and_train_a_student(vision_language, tmp_path):
    source = LanguageModelAspects(*vision_language, ["Is it red ?"], prompt=PROMPT)
    images, keys = torch.rand(4, 3, 8, 8), list("abcd")
    AspectTable.ask(source, images, keys).write(tmp_path / "answers.json")
    labelled = Arrays(inputs=images, labels=torch.arange(4))
    data = with_aspects(labelled, AspectTable.read(tmp_path / "answers.json"), keys)
    learner = MultiAspectDistillation(MLP(192, (8,), 4 + 1), MultiAspectLoss(4))
    assert fit(learner, data, Budget(steps=2, batch_size=4)).epochs["aspects"].notna().all()


def test_chat_template_of_the_processor_is_used(vision_language):
    model, processor = vision_language
    source = LanguageModelAspects(model, processor, ["Is it red ?"], prompt=PROMPT)
    plain = source._text("Is it red ?")
    processor.chat_template = (
        "{% for m in messages %}USER: {% for part in m.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}"
    )
    try:
        assert plain == "USER: <image> Is it red ? Yes or No ASSISTANT:"
        assert source._text("Is it red ?") == "USER: <image> Is it red ? Answer with Yes or No. ASSISTANT:"
        assert source.answer(torch.rand(1, 3, 8, 8), ["a"]).shape == (1, 1)
    finally:
        processor.chat_template = None


def test_words_that_are_no_single_token(vision_language):
    model, processor = vision_language
    assert single_token(processor.tokenizer, "No") == WORDS.index("No")
    for word in ("Yes or", "yes", ""):
        with pytest.raises(ValueError, match="word must be one token of this tokenizer"):
            single_token(processor.tokenizer, word)
    with pytest.raises(ValueError, match="word must be one token"):
        LanguageModelAspects(model, processor, ["A?"], no="Nope")
    with pytest.raises(ValueError, match="yes and no must be different tokens"):
        LanguageModelAspects(model, processor, ["A?"], no="Yes")
    with pytest.raises(ValueError, match=r"prompt must contain \{question\}"):
        LanguageModelAspects(model, processor, ["A?"], prompt="<image>")


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"kdcore\[language\]"):
        LanguageModelAspects.from_pretrained("nobody/nothing", ["A?"])


# Learning


def test_student_learns_the_answers_and_the_classes():
    torch.set_num_threads(1)
    data = digits(train_size=200)
    train = with_aspects(data.train, ProceduralOracle(data.train.inputs))
    budget = Budget(epochs=40, batch_size=32, optimizer="adam", lr=3e-3, weight_decay=0.0)
    scores = {"labels": [], "answers": []}
    for seed in range(3):
        with seeded(seed):
            student, plain = MLP(64, (32,), 10 + 20), MLP(64, (32,), 10)
        learner = MultiAspectDistillation(student, MultiAspectLoss(10))
        history = fit(learner, train, budget, seed=seed)
        fit(Supervised(plain), train, budget, seed=seed)
        assert history.epochs["aspects"].iloc[-1] < history.epochs["aspects"].iloc[0] - 0.2
        for arm, model in (("labels", plain), ("answers", learner.classifier)):
            right = predict(model, data.test.inputs).argmax(1) == data.test.labels
            scores[arm].append(right.double().mean().item())
    assert min(scores["answers"]) > 0.85
    assert np.mean(scores["answers"]) > np.mean(scores["labels"]) - 0.01


# Bad input

GOOD = torch.full((5, QUESTIONS), 0.5)
IMAGES = torch.rand(3, 1, 8, 8)


class Fixed:
    questions = ("A?", "B?")

    def __init__(self, answers):
        self.answers = answers

    def answer(self, images, keys):
        return self.answers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: yes_probability(torch.zeros(2), torch.zeros(3)), "no_logits must have the shape of yes_logits"),
        (lambda: yes_probability(torch.zeros(2) / 0, torch.zeros(2)), "yes_logits must be finite"),
        (lambda: split_outputs(torch.zeros(4, 10), 10), r"outputs must have shape \(B, C \+ Q\)"),
        (lambda: split_outputs(torch.zeros(10), 5), r"outputs must have shape"),
        (lambda: split_outputs(torch.zeros(4, 10), 1), "num_classes must be at least 2, got 1"),
        (lambda: aspect_loss(torch.zeros(5), GOOD), "aspect_logits must have shape"),
        (lambda: aspect_loss(torch.zeros(5, 3), GOOD), r"answers must have .* \(5, 3\), got \(5, 6\)"),
        (lambda: aspect_loss(GOOD / 0, GOOD), "aspect_logits must be finite"),
        (lambda: aspect_loss(GOOD, GOOD + 1), r"answers must be probabilities in \[0, 1\], got values from 1.5 to 1.5"),
        (lambda: aspect_loss(GOOD, GOOD - 1), r"answers must be probabilities in \[0, 1\]"),
        (lambda: aspect_loss(GOOD, GOOD * math.nan), "answers must be finite, got 30 NaN"),
        (lambda: aspect_loss(GOOD, GOOD.long()), "answers must be floating point"),
        (lambda: hard_answers(torch.zeros(3)), r"answers must have shape \(N, Q\), got \(3,\)"),
        (lambda: shuffled_answers(GOOD + 1, 0), "answers must be probabilities"),
        (lambda: class_mean_answers(GOOD, LABELS[:2]), r"labels must have shape \(5,\)"),
        (lambda: flipped_answers(GOOD, 1.5, 0), r"share must lie in \[0, 1\], got 1.5"),
        (lambda: with_aspects(Arrays(inputs=IMAGES), Fixed(torch.zeros(3, 2)), ["a"]), "keys must name each of the 3"),
        (lambda: with_aspects(Arrays(inputs=IMAGES), Fixed(torch.zeros(3, 3))), r"\(3, 2\), got \(3, 3\)"),
        (lambda: with_aspects(Arrays(inputs=IMAGES), Fixed(torch.full((3, 2), 2.0))), "answers must be probabilities"),
        (lambda: measure(torch.zeros(2, 3, 8, 8)), r"images must have shape \(N, 1, H, W\)"),
        (lambda: measure(torch.zeros(2, 1, 5, 8)), "images must have shape"),
        (lambda: measure(IMAGES + 1), r"images must lie in \[0, 1\]"),
        (lambda: measure(IMAGES / 0), "images must be finite"),
        (lambda: ProceduralOracle(IMAGES, slope=0.0), "slope must be a positive number, got 0.0"),
        (lambda: ProceduralOracle(IMAGES, questions=["Is it red?"]), "questions must be different members of MEASURES"),
        (lambda: ProceduralOracle(IMAGES, questions=[]), "questions must be different members of MEASURES"),
        (lambda: ProceduralOracle(IMAGES[:1]), "images must be at least two"),
        (lambda: AspectTable(["A?"], {"x": [0.5]}).answer(IMAGES, ["x", "y"]), "1 are not, first 'y'"),
        (lambda: AspectTable.ask(Fixed(torch.zeros(3, 2)), IMAGES, ["a", "b", "a"]), "keys must all be different"),
        (lambda: MultiAspectLoss(10, alpha=-1.0), "alpha must be a number of at least 0, got -1.0"),
        (lambda: MultiAspectLoss(10, ce_weight=math.nan), "ce_weight must be a number of at least 0, got nan"),
        (lambda: MultiAspectLoss(1), "num_classes must be at least 2, got 1"),
        (lambda: MultiAspectLoss(2)(torch.zeros(5, 8), GOOD, LABELS), r"labels must lie in \[0, 2\)"),
        (lambda: MultiAspectLoss(4)(torch.zeros(5, 10) / 0, GOOD, LABELS), "class_logits must be finite"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
