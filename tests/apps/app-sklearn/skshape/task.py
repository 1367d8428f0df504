"""A logistic regression whose parameters exist before it is fitted, and scikit-learn's own irises."""

import numpy as np
from flwr.common import NDArrays
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

UNIQUE_LABELS = [0, 1, 2]
FEATURES = 4


def get_model_params(model: LogisticRegression) -> NDArrays:
    return [model.coef_, model.intercept_]


def set_model_params(model: LogisticRegression, params: NDArrays) -> None:
    model.coef_, model.intercept_ = params


def create_model(penalty: str) -> LogisticRegression:
    model = LogisticRegression(penalty=penalty, max_iter=1, warm_start=True, solver="saga")
    model.classes_ = np.array(UNIQUE_LABELS)
    set_model_params(model, [np.zeros((len(UNIQUE_LABELS), FEATURES)), np.zeros(len(UNIQUE_LABELS))])
    return model


def load_data(partition_id: int, num_partitions: int):
    data = load_iris()
    X, y = data.data[partition_id::num_partitions], data.target[partition_id::num_partitions]
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[: int(0.8 * len(y))], order[int(0.8 * len(y)) :]
    return X[train], y[train], X[test], y[test]
