"""Facts of a release that nobody made, with everything in them that documents must cope with."""

from __future__ import annotations

from dataclasses import replace

from support.synthetic_log import environment

from dure.provenance.environments import in_words
from dure.provenance.facts import (
    About,
    Accelerator,
    Binding,
    Compute,
    Facts,
    LogPoint,
    MemberFacts,
    Metric,
    Tensors,
    TrainingRun,
)
from dure.provenance.spent import Spent, Total

SPENT = Spent(Total("18000000000", 12), None, Total("2000000000000", 3), {"declared": Total("1800000000", 12)})
FILES = {"model.safetensors": b"\1" * 32, "config.json": b"\2" * 32}


def some_facts() -> Facts:
    """Three members, one of whom declared data, with Korean and markup in their words."""
    members = tuple(
        MemberFacts(m, name, 4, 4, 4, 1000, 10, 2500, ("cpu",), data, in_words(environment(m)))
        for m, name, data in (
            ("krafton", "크래프톤", "Game dialogue, licence: own | 2019-2024 <script>"),
            ("rebellions", "Rebellions *Inc*", None),
            ("skt", 'SK "Telecom"', None),
        )
    )
    return Facts(
        v=1,
        name="titan-tiny-1.0",
        made_with="dure 0.1.0",
        consortium="titan",
        consortium_id=b"\7" * 16,
        charter_version=1,
        charter_sha256=b"\3" * 32,
        log=LogPoint("dure/titan/07", 120, b"\4" * 32, 1_790_000_000),
        run=TrainingRun(
            b"\5" * 32,
            "pretrain",
            "1.0.0",
            b"\6" * 32,
            None,
            4,
            4,
            8,
            "nesterov lr=0.8",
            "recomputed",
            "weights that the app drew",
            None,
            {"seed": "7", "t": 'a"b'},
        ),
        tensors=Tensors(b"\x08" * 32, b"\x09" * 32, 1_000_000, {"float32": 1_000_000}, ("model.safetensors",)),
        binding=Binding(b"\x0a" * 32, ("krafton", "skt"), (9,)),
        members=members,
        metrics=(Metric(9, "evaluate", "loss", "3.25", 300, 3, b"\x07" * 32),),
        compute=Compute(3000, 12, SPENT, {"cpu": 7500}),
        about=About(title="타이탄", summary="A small model.\n\nTwo paragraphs.", license="Apache-2.0", languages=("ko", "en")),
    )


def nothing_said() -> Facts:
    """The same release where nobody declared anything that may be left out."""
    facts = some_facts()
    quiet = tuple(replace(m, data=None, environment=None, devices=(), tokens=0) for m in facts.members)
    return replace(facts, members=quiet, metrics=(), compute=Compute(0, 12, Spent(), {}), about=About())


ACCELERATORS = (Accelerator("cpu", "1.5e12"),)
