"""Features for PyTorch."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.utils.data

from ._folder import FeatureFolder


class FeatureDataset(torch.utils.data.Dataset[Any]):
    """Rows of a feature folder: ``(features, class)``, or the features alone where rows have no labels.

    The tensor shares the array that was read.

    Args:
        folder: a feature folder or its path.
        column: its column; by default ``cls``, or else the first.
        classes: names of the classes in the order of their numbers; by default those of the folder, sorted. Give those of
            train to the test folder.
    """

    def __init__(
        self, folder: FeatureFolder | str | os.PathLike[str], column: str | None = None, classes: list[str] | None = None
    ) -> None:
        self.folder = folder if isinstance(folder, FeatureFolder) else FeatureFolder(folder)
        #: float32 ``[n, D]``, or ``[n, N, D]``.
        self.features = torch.from_numpy(self.folder.to_numpy(column))
        labels = self.folder.labels
        labelled = all(label is not None for label in labels)
        self.classes: list[str] = classes or (sorted({str(label) for label in labels}) if labelled else [])
        numbers = {name: number for number, name in enumerate(self.classes)}
        #: int64 ``[n]``; None where there are no labels.
        self.targets = torch.tensor([numbers[str(label)] for label in labels]) if labelled else None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Any:
        if self.targets is None:
            return self.features[index]
        return self.features[index], self.targets[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": self.folder.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "folder": FeatureFolder(state["folder"])})
