"""Which Flower strategies can run over one masked sum, and why the others cannot.

Checked against N individual replies (tests/unit/flower): on one reply that already is the weighted mean, the allowed
ones give the same result. Everything else is refused before anything is sent, unless the app's author declares its
class linear in `[tool.dure]` and the members approve a plan that says so.
"""

from __future__ import annotations

from collections.abc import Collection

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from dure_coordinator.flower.backend import GridRefused

NO_STRATEGY = "none"
"""In `linear-strategy`: a ServerApp that calls the Grid without a strategy class."""

ALLOWED: tuple[type[Strategy], ...] = (
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
    flower.FedProx,
)

_NEEDS_EACH = "it needs every member's own update, and only their sum is ever visible"
_OWN_DP = "its clipping or noise runs where user code can skip it; use the plan's privacy section, applied in the agent"
_TREES = "its replies are trees in bytes, which cannot be summed"

REASONS: dict[str, str] = {
    "Krum": _NEEDS_EACH,
    "MultiKrum": _NEEDS_EACH,
    "Bulyan": _NEEDS_EACH,
    "FedMedian": _NEEDS_EACH,
    "FedTrimmedAvg": _NEEDS_EACH,
    "QFedAvg": "it weighs each update by that member's own loss, which stays masked",
    "DifferentialPrivacyClientSideFixedClipping": _OWN_DP,
    "DifferentialPrivacyClientSideAdaptiveClipping": _OWN_DP,
    "DifferentialPrivacyServerSideFixedClipping": "clipping a mean is not client-level privacy; use the plan's privacy section",
    "DifferentialPrivacyServerSideAdaptiveClipping": "clipping a mean is not client-level privacy; use the plan's privacy section",
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
}


def check_strategy(strategy: Strategy, declared_linear: Collection[str] = ()) -> None:
    """Nothing if this strategy may run under secure aggregation.

    A subclass of an allowed class passes as long as it leaves `start`, `aggregate_train` and `aggregate_evaluate` alone.
    Stock classes that are known to be wrong are refused even if declared.

    Raises:
        GridRefused: naming the class and the reason.
    """
    kind = type(strategy)
    stock = next((base for base in kind.__mro__ if base.__module__.startswith("flwr.") and base.__name__ in REASONS), None)
    if stock is not None:
        raise GridRefused(
            f"strategy {kind.__name__} cannot run under secure aggregation: {REASONS[stock.__name__]}; use one of {_allowed_names()}"
        )
    if kind in ALLOWED or kind.__name__ in declared_linear:
        return
    if isinstance(strategy, ALLOWED):
        changed = [name for name in ("start", "aggregate_train", "aggregate_evaluate") if not _stock_method(kind, name)]
        if not changed:
            return
        what = f"overrides {', '.join(changed)}"
    else:
        what = "is not known to be a function of the weighted mean"
    raise GridRefused(
        f"strategy {kind.__name__} {what}; use one of {_allowed_names()}, or, if it only needs the weighted mean, "
        f'declare it in pyproject.toml: [tool.dure] linear-strategy = ["{kind.__name__}"]'
    )


def check_sampling(strategy: Strategy, members: int, quorum: int) -> None:
    """Nothing if every exchange of this strategy could ask the quorum, were all members connected.

    Judged by what Flower's own `configure_train` and `configure_evaluate` do with their fractions; one that is overridden is judged
    when it sends.

    Raises:
        GridRefused: with the arithmetic and the smallest fraction that would do.
    """
    for kind in ("train", "evaluate"):
        fraction, least = (getattr(strategy, f"{name}_{kind}{suffix}", 0) for name, suffix in (("fraction", ""), ("min", "_nodes")))
        if not fraction or not _stock_method(type(strategy), f"configure_{kind}"):
            continue
        picked = max(int(members * fraction), least)
        if picked < quorum:
            raise GridRefused(
                f"fraction_{kind} = {fraction:g} of {members} members picks {picked}, and {quorum} of them at least must be in a sum "
                f"(more than half of members and assumed colluders): a smaller one would single members out; "
                f"set it to {_fraction(quorum, members)} or more, or to 0"
            )


def _fraction(quorum: int, members: int) -> str:
    """The smallest fraction of two digits with int(members · fraction) ≥ quorum."""
    return next(f"{hundredths / 100:g}" for hundredths in range(1, 101) if int(members * (hundredths / 100)) >= quorum)


def check_no_strategy(declared_linear: Collection[str]) -> None:
    """Nothing if a ServerApp may call the Grid without a strategy that was let through.

    Raises:
        GridRefused: it was not declared.
    """
    if not declared_linear:
        raise GridRefused(
            "the ServerApp sends messages without a Flower strategy's start(); if it only needs the weighted mean, "
            f'declare it in pyproject.toml: [tool.dure] linear-strategy = ["{NO_STRATEGY}"]'
        )


def _stock_method(kind: type, name: str) -> bool:
    owner = next(base for base in kind.__mro__ if name in base.__dict__)
    return owner.__module__.startswith("flwr.")


def _allowed_names() -> str:
    return ", ".join(kind.__name__ for kind in ALLOWED)
