"""The amounts: known to the members and to the test that recomputes what the sum must be."""

import numpy as np

ELEMENTS = 600_000
"""Three chunks of a masked update."""
OWN = 0.1
"""What a member adds to its own part of the model per training it has done: a lost or a repeated training shows there."""


def initial(run_id: int) -> np.ndarray:
    return np.random.default_rng(run_id).standard_normal(ELEMENTS).astype(np.float32)


def examples(partition: int) -> int:
    return 10 * (partition + 1)


def delta(partition: int, partitions: int, number: int, trainings: int) -> np.ndarray:
    """What a member adds in a round; `trainings` counts this one and those before it."""
    change = np.random.default_rng((partition, number)).standard_normal(ELEMENTS).astype(np.float32) * np.float32(0.01)
    size = ELEMENTS // partitions
    change[partition * size : (partition + 1) * size] += np.float32(OWN * trainings)
    return change


def model(run_id: int, rounds: int, partitions: int) -> np.ndarray:
    """The weights after so many rounds in which everybody was counted once."""
    weights = initial(run_id).astype(np.float64)
    total = sum(examples(p) for p in range(partitions))
    for number in range(1, rounds + 1):
        weights += sum(examples(p) * delta(p, partitions, number, number).astype(np.float64) for p in range(partitions)) / total
    return weights
