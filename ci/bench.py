"""Measure speed as ratios within one run: our loop against hand-written ones; and how soon a page shows.

    python ci/bench.py [--rounds 9]

Each ratio is the median over rounds in which the two sides take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kdcore import data, models, study, training
from kdcore.data import Arrays
from kdcore.features import ama_kd, nd_kd, proc_kd, scalekd, trg
from kdcore.foundations.kd import KnowledgeDistillation
from kdcore.logits import dhkd, lelp, lw_kd, mix_kd, multi_aspect_kd, sinkd, spherical_kd, tgeo_kd
from kdcore.self_distillation import corsd, lsskd, mdcs, rotnet

_BATCH, _EPOCHS = 128, 3
_LONGER = 12  # epochs of the comparison with the bare loop, so that what a run costs once is not taken for the loop


def images(name: str) -> Arrays:
    """Digits, or as many MNIST-shaped images (28×28, labels and all) as keep a round short."""
    digits = data.digits(1792 - 256)
    if name == "digits":
        return digits.train
    return Arrays(inputs=F.interpolate(digits.train.inputs, (28, 28)), labels=digits.train.labels)


def networks() -> tuple[nn.Module, nn.Module]:
    with training.seeded(0):
        return models.ConvNet(width=32, depth=3).requires_grad_(False).eval(), models.ConvNet(width=8, depth=3)


def ours(rows: Arrays, teacher: nn.Module | None, student: nn.Module, augment=None, epochs: int = _EPOCHS) -> None:
    """`fit`, with the teacher's logits from the batch, or from the teacher where one is given."""
    learner = training.Distillation(student, KnowledgeDistillation(), teacher)
    training.fit(learner, rows, training.Budget(epochs=epochs, batch_size=_BATCH), augment=augment)


def bare(
    rows: Arrays, student: nn.Module, layout: torch.memory_format = torch.channels_last, epochs: int = _EPOCHS
) -> None:
    """The least that such a loop can be: index, forward, backward, step."""
    student.to(memory_format=layout)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(rows) // _BATCH))
    loss, student = KnowledgeDistillation(), student.train()
    for _ in range(epochs):
        for index in torch.randperm(len(rows))[: len(rows) // _BATCH * _BATCH].split(_BATCH):
            value = loss(student(rows.inputs[index]), rows.teacher_logits[index], rows.labels[index])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            scheduler.step()


class _Transformed(TensorDataset):
    """Image by image, as torchvision's data sets do it."""

    def __init__(self, rows: Arrays, augmented: bool) -> None:
        from torchvision.transforms import v2

        super().__init__((rows.inputs * 255).byte(), rows.labels)
        crop = [v2.RandomCrop(rows.inputs.shape[-1], padding=1)] if augmented else []
        self.transform = v2.Compose([v2.ToPILImage(), *crop, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        return self.transform(image), label


def usual(rows: Arrays, teacher: nn.Module, student: nn.Module, augmented: bool = False) -> None:
    """The field's usual loop: DataLoader, transforms image by image, teacher in every step, a loss read per step."""
    loader = DataLoader(_Transformed(rows, augmented), batch_size=_BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    student.train()
    for _ in range(_EPOCHS):
        for inputs, labels in loader:
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            logits = student(inputs)
            soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(teacher_logits / 4, 1), reduction="batchmean") * 16
            value = 0.9 * soft + 0.1 * F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            value.item()


def ratio(first: Callable[[], None], second: Callable[[], None], rounds: int) -> float:
    """Time of `first` in units of that of `second`."""
    return study.relative_costs({"second": second, "first": first}, rounds)["first"]


def loops(rounds: int) -> None:
    """Our loop against a bare one and against the usual one, on small and on MNIST-sized images."""
    for name in ("digits", "mnist-shaped"):
        rows, (teacher, student) = images(name), networks()
        _compare_loops(name, rows, teacher, student, rounds)


def _compare_loops(name: str, rows: Arrays, teacher: nn.Module, student: nn.Module, rounds: int) -> None:
    cached, move = training.with_teacher(rows, teacher), data.shift(1)
    longer = {"epochs": _LONGER}
    gain = ratio(lambda: ours(cached, None, student, **longer), lambda: bare(cached, student, **longer), rounds)
    print(f"{name:14s} {'our loop / bare loop':52s} {gain:5.2f}  (<= 1.05)", flush=True)
    gain = ratio(lambda: usual(rows, teacher, student), lambda: ours(cached, None, student), rounds)
    print(f"{name:14s} {'usual loop / ours, teacher cached':52s} {gain:5.2f}  (>= 3)", flush=True)
    gain = ratio(lambda: usual(rows, teacher, student, True), lambda: ours(rows, teacher, student, move), rounds)
    print(f"{name:14s} {'usual loop / ours, augmented, teacher in the loop':52s} {gain:5.2f}  (>= 1.3)", flush=True)


def options(rounds: int) -> None:
    """What was tried to make a step faster."""
    for name in ("digits", "mnist-shaped"):
        print(f"{name:14s} {'contiguous / channels-last weights':52s} {layouts(images(name), rounds):5.2f}", flush=True)
    weights = [torch.randn(64, 64, requires_grad=True) for _ in range(20)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    plain, fused = (torch.optim.SGD(weights, 0.1, momentum=0.9, fused=choice) for choice in (False, True))
    gain = ratio(lambda: [plain.step() for _ in range(200)], lambda: [fused.step() for _ in range(200)], rounds)
    print(f"{'optimiser':14s} {'plain SGD / fused SGD, step alone':52s} {gain:5.2f}")
    print(
        f"{'digits':14s} {'5 seeds one by one / side by side (vmap)':52s} {side_by_side(images('digits'), rounds):5.2f}"
    )


def layouts(rows: Arrays, rounds: int) -> float:
    """The bare loop with its weights as they come, against channels-last."""
    teacher, student = networks()
    rows = training.with_teacher(rows, teacher)
    return ratio(lambda: bare(rows, student, torch.contiguous_format), lambda: bare(rows, student), rounds)


def side_by_side(rows: Arrays, rounds: int, seeds: int = 5) -> float:
    """Forward and backward of an MLP for several seeds: a loop, against stacked weights under vmap."""
    students = [models.MLP(64, (32,)) for _ in range(seeds)]
    stacked, _ = torch.func.stack_module_state(students)
    inputs, labels = rows.inputs[:_BATCH], rows.labels[:_BATCH]

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(students[0], weights, (inputs,)), labels)

    gradient = torch.func.vmap(torch.func.grad(loss))

    def one_by_one() -> None:
        for _ in range(50):
            for student in students:
                F.cross_entropy(student(inputs), labels).backward()

    return ratio(one_by_one, lambda: [gradient(stacked) for _ in range(50)], rounds)


def method_costs(rounds: int) -> None:
    """A training step of each method in units of plain distillation's with a cached teacher."""
    rows = nd_kd.with_features(images("digits"), networks()[0])
    rows = rows.with_(augmented=torch.zeros(len(rows), 4, 32))
    rows = rows.with_(subclass_targets=rows.teacher_logits.softmax(dim=1), answers=torch.full((len(rows), 20), 0.5))

    def distilled(loss: nn.Module) -> training.Learner:
        return training.Distillation(networks()[1], loss)

    def two_heads(align: bool) -> training.Learner:
        return dhkd.DualHeadDistillation(networks()[1], dhkd.auxiliary_head(32, 10), align=align)

    def mixed() -> training.Learner:
        teacher, student = networks()
        return mix_kd.MixupDistillation(student, teacher, mix_kd.UnitStdLoss(), mix_kd.Mixup(unmixed=0.9))

    def weighed() -> training.Learner:
        centres = tgeo_kd.class_centres(rows.teacher_logits, rows.labels)
        return tgeo_kd.TrilateralDistillation(networks()[1], tgeo_kd.TrilateralLoss(centres))

    def subdivided() -> training.Learner:  # five subclasses of two classes: as many outputs as the others have
        return lelp.SubclassDistillation(networks()[1], num_classes=2)

    def borrowed() -> training.Learner:
        return lw_kd.LightweightDistillation(networks()[1], lw_kd.TargetBank(rows.teacher_logits, rows.labels))

    def lengthened() -> training.Learner:
        means = nd_kd.class_means(rows.teacher_features, rows.labels, 10)
        adapter = nd_kd.FeatureAdapter(32, means.shape[1])
        return nd_kd.NormDirectionDistillation(networks()[1], means, adapter=adapter)

    def questioned() -> training.Learner:
        student = models.ConvNet(width=8, depth=3, num_classes=10 + 20)
        return multi_aspect_kd.MultiAspectDistillation(student, multi_aspect_kd.MultiAspectLoss(10))

    def diversified() -> training.Learner:
        experts = mdcs.Experts([models.ConvNet(width=8, depth=3) for _ in range(3)])
        return mdcs.DiverseExperts(experts, mdcs.MDCSLoss(rows.labels.bincount()))

    def adapted() -> training.Learner:
        teacher, student = networks()
        module = ama_kd.AdaptedTeacher(teacher, stage=1, out_channels=student.widths[1], size=(4, 4))
        return ama_kd.MapAdaptation(student, module, stage=1)

    def attending() -> training.Learner:
        teacher, student = networks()
        layers = ["stages.0", "stages.1", "stages.2"]
        bank = proc_kd.PrototypeBank(proc_kd.layer_shapes(teacher, layers, rows.inputs[:1]), 4, 32, prototypes=16)
        return proc_kd.PrototypeDistillation(student, bank, teacher, layers, student_layer="stages.2")

    def related() -> training.Learner:
        return trg.TokenGraphDistillation(networks()[1], (16, 64), bandwidth=10.0, per_image=4)

    def projected() -> training.Learner:
        teacher, student = networks()
        return scalekd.ScaleDistillation(student, teacher, rows.inputs)

    within, learners = "(<= 1.5)", {}  # what demands more says why
    learners["kd"] = distilled(KnowledgeDistillation()), within
    learners["spherical_kd"] = distilled(spherical_kd.SphericalDistillation()), within
    learners["sinkd"] = distilled(sinkd.SinkhornDistillation()), "(20 iterations, one after the other)"
    learners["dhkd, not aligned"] = two_heads(align=False), within
    learners["dhkd"] = two_heads(align=True), "(two backward passes)"
    learners["mix_kd"] = mixed(), "(the teacher runs, as its images are new at each step)"
    learners["tgeo_kd"] = weighed(), "(bilevel: every second step a second derivative)"
    learners["lw_kd"] = borrowed(), "(a step of the discriminator beside the student's)"
    learners["lelp"] = subdivided(), within
    learners["multi_aspect_kd"] = questioned(), within
    learners["ama_kd"] = adapted(), "(the teacher's front runs, a module is trained beside the student)"
    learners["nd_kd"] = lengthened(), within
    learners["proc_kd"] = attending(), "(the student's tokens attend to prototypes, with gradient)"
    learners["rotnet"] = rotnet.RotationPretext(networks()[1]), "(four copies of each image)"
    learners["lsskd"] = lsskd.LayeredDistillation(networks()[1]), "(four rotations, a branch at every stage)"
    learners["mdcs"] = diversified(), "(two views of each image, three experts)"
    learners["corsd"] = corsd.RelationalSelfDistillation(networks()[1]), "(triplets, a relation network at every stage)"
    learners["trg"] = related(), "(a graph of 512 tokens of each network at every step)"
    learners["scalekd"] = projected(), "(four attention projectors, the teacher's last stage twice)"
    own: dict[type, Arrays | dict[str, Arrays]] = {
        trg.TokenGraphDistillation: trg.cache_teacher(rows, networks()[0], "stages.1", side=4),
        tgeo_kd.TrilateralDistillation: {"train": rows, "validation": rows},
        corsd.RelationalSelfDistillation: corsd.Triplets(rows),
        scalekd.ScaleDistillation: scalekd.with_teacher_maps(rows, networks()[0]),
    }

    def steps(learner: training.Learner) -> Callable[[], object]:
        streams = own.get(type(learner), rows)
        views = mdcs.two_views(data.shift(1), mdcs.strong_view()) if isinstance(learner, mdcs.DiverseExperts) else None
        return lambda: training.fit(learner, streams, training.Budget(steps=40, batch_size=_BATCH), augment=views)

    costs = study.relative_costs({method: steps(learner) for method, (learner, _) in learners.items()}, rounds)
    for method, cost in costs.items():
        print(f"{'digits':14s} {'a step / a step of KD: ' + method:52s} {cost:5.2f}  {learners[method][1]}", flush=True)


def import_time(rounds: int) -> None:
    """Seconds that `import kdcore` and its first method add to `import torch`."""

    def seconds(code: str) -> float:
        program = f"import torch, time; began = time.perf_counter(); {code}; print(time.perf_counter() - began)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    value = statistics.median(seconds("import kdcore; from kdcore.foundations import kd") for _ in range(rounds))
    print(f"{'import':14s} {'kdcore beyond torch, seconds':52s} {value:5.2f}  (<= 0.5)")


def first_view(rounds: int) -> None:
    """Seconds until Chromium first shows something of the largest chapter, from local disk."""
    site = Path(__file__).resolve().parent.parent / "_build" / "html"
    chapters = sorted(site.glob("chapters/*/*.html"), key=lambda path: path.stat().st_size)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chapters or chromium is None:
        print("first view of a page: not measured, which takes a built book and Chromium")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        times = []
        for _ in range(rounds):
            page = browser.new_page()
            page.goto(chapters[-1].as_uri(), wait_until="load")
            page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
            times.append(page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            page.close()
        browser.close()
    label = f"first view of {chapters[-1].stem}, seconds"
    print(f"{'page':14s} {label:52s} {statistics.median(times) / 1000:5.2f}  (<= 1)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    import_time(rounds)
    loops(rounds)
    options(rounds)
    method_costs(rounds)
    first_view(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
