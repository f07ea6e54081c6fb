"""A transformer for scikit-learn's pipelines: images in, features out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from ._errors import make
from ._model import Model, load


class Embedder(TransformerMixin, BaseEstimator):
    """Features of images, frozen: ``fit`` learns nothing.

    >>> make_pipeline(Embedder("vits14.onnx"), LogisticRegression()).fit(paths, labels)

    Args:
        model: what :func:`macula.load` takes.
        device, threads, outputs, options: its arguments; ``options`` is a dict of the others.
        batch_size: images per run of the model.
    """

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        threads: int = 0,
        outputs: str | None = None,
        batch_size: int = 32,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.threads = threads
        self.outputs = outputs
        self.batch_size = batch_size
        self.options = options

    def _open(self) -> Model:
        asked = (self.model, self.device, self.threads, self.outputs, repr(self.options))
        if getattr(self, "_asked", None) != asked:
            if self.model is None:
                raise make("setting", "model: expected an ONNX file or a checkpoint, found None")
            self._opened = load(self.model, self.device, self.threads, self.outputs, **(self.options or {}))
            self._asked = asked
        return self._opened

    def fit(self, X: Any, y: Any = None) -> Embedder:
        """Opens the model."""
        self.n_features_out_ = self._open().dim
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features float32 ``[n, D]`` of images, as :meth:`macula.Model.embed` takes them."""
        features = self._open().embed(X, self.batch_size)
        if isinstance(features, dict):
            raise make("setting", "outputs: expected one here, found several; `a+b` lays them side by side")
        return features.reshape(len(features), -1)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``cls0`` to ``cls{D-1}``."""
        name = next(iter(self._open().outputs))
        return np.array([f"{name}{i}" for i in range(self._open().dim)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_opened", None)
        state.pop("_asked", None)
        return state
