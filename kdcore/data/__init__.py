"""Real data sets and what is made from them, as tensors on a device."""

from kdcore.data.arrays import Arrays
from kdcore.data.augment import flip, rotations, shift
from kdcore.data.benchmarks import DATASETS, cifar10, cifar100, load, mnist, usps
from kdcore.data.dataset import Dataset, MissingDataError, data_folders
from kdcore.data.digits import digits
from kdcore.data.domains import DOMAINS, digit_domain
from kdcore.data.graphs import GraphData, cora, digits_graph, nearest_neighbour_graph
from kdcore.data.scenes import SCENE_DOMAINS, scenes
from kdcore.data.text import PADDING, UNKNOWN, TextDataset, build_vocabulary, encode, sst2

__all__ = [
    "DATASETS",
    "DOMAINS",
    "PADDING",
    "SCENE_DOMAINS",
    "UNKNOWN",
    "Arrays",
    "Dataset",
    "GraphData",
    "MissingDataError",
    "TextDataset",
    "build_vocabulary",
    "cifar10",
    "cifar100",
    "cora",
    "data_folders",
    "digit_domain",
    "digits",
    "digits_graph",
    "encode",
    "flip",
    "load",
    "mnist",
    "nearest_neighbour_graph",
    "rotations",
    "scenes",
    "shift",
    "sst2",
    "usps",
]
