"""Training: one loop, budgets, learners, seeds, early stopping, cached teacher outputs."""

from kdcore.training.budget import Budget
from kdcore.training.fit import History, fit
from kdcore.training.learners import Distillation, Learner, Supervised
from kdcore.training.seeding import deterministic, pick_device, seeded
from kdcore.training.stopping import EarlyStopping
from kdcore.training.teachers import carried_layers, layers_of, predict, predict_layers, with_layers, with_teacher

__all__ = [
    "Budget",
    "Distillation",
    "EarlyStopping",
    "History",
    "Learner",
    "Supervised",
    "carried_layers",
    "deterministic",
    "fit",
    "layers_of",
    "pick_device",
    "predict",
    "predict_layers",
    "seeded",
    "with_layers",
    "with_teacher",
]
