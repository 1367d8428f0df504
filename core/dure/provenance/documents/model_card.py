"""README.md: the model card, Markdown with YAML front matter. Source: Hugging Face hub documentation, "Model cards"."""

from __future__ import annotations

import json

from dure.provenance.documents.words import NOT_DECLARED, back, cell, energy, flop, rounded, said, table, title, when
from dure.provenance.facts import Facts

CARD = "README.md"


def model_card(facts: Facts, architecture: str | None) -> bytes:
    """The card's bytes; the same facts give the same.

    Args:
        architecture: the first of `architectures` in config.json, which `transformers` knows the model by; None without one.
    """
    parts = [_front_matter(facts, architecture), f"# {title(facts)}\n", _lead(facts), _use(facts), _data(facts), _training(facts)]
    return "\n".join([*parts, _evaluation(facts), _compute(facts), _limits(facts), _check(facts)]).encode()


def _front_matter(facts: Facts, architecture: str | None) -> str:
    about = facts.about
    fields: dict[str, object] = {"license": (about.license or "unknown").lower()}
    if about.languages:
        fields["language"] = list(about.languages)
    if architecture is not None:
        fields["library_name"] = "transformers"
    if about.pipeline_tag is not None:
        fields["pipeline_tag"] = about.pipeline_tag
    fields["tags"] = ["dure", "federated", "secure-aggregation"]
    # JSON is YAML: quoted so that no value is read as anything but text.
    return "".join(["---\n", *(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items()), "---\n"])


def _lead(facts: Facts) -> str:
    run, tensors = facts.run, facts.tensors
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in tensors.dtypes.items())
    return f"""{said(facts.about.summary) if facts.about.summary else "Summary: not declared."}

Trained by {len(facts.members)} members of the consortium {cell(facts.consortium)} together, each on data that stayed with it.
The coordinator added up their updates under masks and saw no single one. {tensors.parameters:,} parameters ({dtypes}),
round {run.round} of {run.rounds}, app {cell(run.app_name)} {cell(run.app_version)}.
Facts as of {when(facts.log.time)}, drawn from the first {facts.log.size:,} entries of the consortium's log.
"""


def _use(facts: Facts) -> str:
    return f"## Intended use\n\n{_sentence(facts.about.intended_use)}\n\nContact: {said(facts.about.contact)}.\n"


def _sentence(text: str | None) -> str:
    return text.strip() if text else "Not declared."


def _data(facts: Facts) -> str:
    rows = ((m.display_name, m.member, said(m.data), f"{m.tokens:,}", str(m.counted)) for m in facts.members)
    names = ("Member", "Id", "Data as the member declared it", "Tokens processed*", "Sums it is in")
    return f"""## Training data, by member

{table(names, rows)}
\\* The member's own word; a token seen twice counts twice. Nothing can prove from outside what a member trained on.
"""


def _training(facts: Facts) -> str:
    run = facts.run
    named = "no statement in the log names these very weights"
    if facts.binding.accepted_by:
        named = f"{', '.join(facts.binding.accepted_by)} signed that they computed these very weights from the sums"
    elif facts.binding.opened_in:
        named = (
            f"the coordinator's signed opening of exchange {facts.binding.opened_in[0]} names these very weights, which members then used"
        )
    rows = [
        ("run", run.run.hex()),
        ("began with", run.begins),
        *([("goes back to", back(run))] if run.ancestors else []),
        ("outer step", run.outer_step),
        ("bases", run.lineage),
        ("these weights", named),
        ("weights id", facts.tensors.weights_id.hex()),
        ("settings", ", ".join(f"{k} = {v}" for k, v in run.settings.items()) or "none"),
    ]
    return f"## Training\n\n{table(('', ''), rows)}"


_MEASURED = {"train": "while training", "evaluate": "these weights", "query": "these weights"}


def _evaluation(facts: Facts) -> str:
    if not facts.metrics:
        return "## Evaluation\n\nNot declared: no exchange of the run measured these weights.\n"
    rows = (
        (
            m.name,
            rounded(m.value),
            _MEASURED[m.category],
            f"{m.examples:,}",
            str(m.members),
            m.eval_sha256.hex()[:16] if m.eval_sha256 else "",
        )
        for m in facts.metrics
    )
    names = ("Metric", "Value", "Measured on", "Examples", "Members", "Statement")
    means = (
        "Weighted means over members, opened under masks and signed; a statement is the log's `eval` of this payload digest. "
        "What each metric means is the app's affair."
    )
    return f"## Evaluation\n\n{table(names, rows)}\n{means}\n"


def _compute(facts: Facts) -> str:
    total = facts.compute
    ms = sum(total.device_ms.values())
    devices = ", ".join(f"{d or NOT_DECLARED}: {v / 3_600_000:,.3f} h" for d, v in total.device_ms.items()) or NOT_DECLARED
    rows = [
        ("formula, 6 × parameters × tokens (2 × where nothing was trained)", flop(total.spent.formula_flop, total)),
        ("measured by the members' code", flop(total.spent.measured_flop, total)),
        ("hardware, seconds × peak rate (upper bound)", flop(total.spent.hardware_flop, total)),
        ("energy", energy(total)),
        ("worker hours by device, as members named it", f"{devices} ({ms / 3_600_000:,.3f} h together)"),
    ]
    before = "" if facts.run.base_weights_id is None else "\nWhat came before the weights this run began with is not in these totals.\n"
    places = table(("Member", "Trained in, as its node said"), ((m.display_name, said(m.environment)) for m in facts.members))
    return f"## Compute\n\nAll of it is what members say of themselves.\n\n{table(('Method', 'Total'), rows)}{before}\n{places}"


def _limits(facts: Facts) -> str:
    return f"""## Limits

{_sentence(facts.about.limitations)}

Not claimed: protection against a member's poisoned updates, that the data is lawful, that a self-declared accelerator exists.
"""


def _check(facts: Facts) -> str:
    return """## Check this release

```
pip install model-signing "pyOpenSSL>=26"
model_signing verify certificate . --signature model.sig --certificate_chain release-root.pem
pip install dure
dure release verify . --root-sha256 PIN
```

The first shows that the files are as they were signed; the second also by whom: under the release CA that the charter names and by enough
members, and that the release is an entry of the consortium's log. PIN is the digest of charter version 1; get it over a second channel.
"""
