"""The shape that the image backbones share: stem, stages, pool, classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["StagedNetwork"]


class StagedNetwork(nn.Module):
    """A classifier that is a chain: ``stem`` → each of ``stages`` → ``pool`` → ``classifier``.

    Methods that work on features rely on this chain: `embed` gives what the classifier sees, `maps` the output of
    every stage, `tail` the rest of the network after a stage.

    Attributes:
        stem: from inputs (B, channels, H, W) to the first map.
        stages: from map to map, each (B, C_l, H_l, W_l); a stage ends after its last ReLU.
        pool: from the last map to embeddings (B, d).
        classifier: from embeddings to logits (B, C).
        widths: channels C_l of each stage.

    Example:
        >>> import torch
        >>> from kdcore.models import ConvNet
        >>> network, inputs = ConvNet(width=4, depth=3), torch.zeros(2, 1, 8, 8)
        >>> maps, logits = network.maps(inputs)
        >>> [tuple(one.shape) for one in maps]
        [(2, 4, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2)]
        >>> torch.equal(network.tail(-2)(maps[-2]), logits)
        True
    """

    def __init__(
        self, stem: nn.Module, stages: list[nn.Module], pool: nn.Module, classifier: nn.Module, widths: list[int]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.pool = pool
        self.classifier = classifier
        self.widths = widths

    def embed(self, inputs: Tensor) -> Tensor:
        """Embeddings (B, d) of inputs (B, channels, H, W)."""
        features = self.stem(inputs)
        for stage in self.stages:
            features = stage(features)
        return self.pool(features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, channels, H, W)."""
        return self.classifier(self.embed(inputs))

    def maps(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """The output of every stage, and the logits (B, C)."""
        features, maps = self.stem(inputs), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps, self.classifier(self.pool(features))

    def tail(self, stage: int) -> Callable[[Tensor], Tensor]:
        """The rest of the network after stage number `stage` (from 0, negative from the end): map to logits (B, C).

        Raises:
            ValueError: the network has no such stage.
        """
        return nn.Sequential(*self.stages[self.stage_number(stage) + 1 :], self.pool, self.classifier)

    def stage_number(self, stage: int) -> int:
        """`stage` as a number from 0; a negative one counts from the end.

        Raises:
            ValueError: the network has no such stage.
        """
        if not -len(self.stages) <= stage < len(self.stages):
            raise ValueError(f"stage must lie in [{-len(self.stages)}, {len(self.stages)}), got {stage}.")
        return range(len(self.stages))[stage]
