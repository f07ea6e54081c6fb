"""The transformer in scikit-learn's own machinery."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402

import macula  # noqa: E402
from macula.sklearn import Embedder  # noqa: E402


def test_cross_val_score_of_a_pipeline(onnx, paths, labels):
    pipeline = make_pipeline(Embedder(onnx, device="cpu", threads=2), LogisticRegression(max_iter=500))
    scores = cross_val_score(pipeline, np.array(paths), np.array(labels), cv=3)
    assert scores.shape == (3,) and scores.mean() > 0.8
    search = GridSearchCV(pipeline, {"embedder__outputs": ["cls", "cls+patch_gem"]}, cv=2)
    assert search.fit(np.array(paths), np.array(labels)).best_score_ > 0.8


def test_it_is_a_transformer(onnx, paths, model):
    embedder = Embedder(onnx, device="cpu")
    features = embedder.fit_transform(paths)
    assert np.array_equal(features, model.embed(paths))
    assert len(embedder.get_feature_names_out()) == features.shape[1]
    again = pickle.loads(pickle.dumps(embedder))
    assert np.array_equal(again.transform(paths), features)
    assert clone(embedder).get_params() == embedder.get_params()
    with pytest.raises(macula.InputError, match="model: expected"):
        Embedder().fit(paths)


@pytest.mark.parametrize(
    "check",
    [
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
    ],
)
def test_estimator_checks_that_apply(check, onnx):
    """Those that do not feed it numbers in place of images."""
    getattr(estimator_checks, check)("Embedder", Embedder(onnx, device="cpu"))
