"""about.toml: the words of whoever makes a release. What is not in it reads "not declared"."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from dure.errors import BadInput, Refused
from dure.identity.files import read
from dure.provenance.documents.training_content import QUESTIONS
from dure.provenance.facts import About, Accelerator
from dure.statements import schema

EXAMPLE = """\
title = "Titan 1B"
summary = "A Korean and English language model."
license = "Apache-2.0"
languages = ["ko", "en"]
pipeline_tag = "text-generation"
intended_use = "Research."
limitations = "Not for medical advice."
contact = "models@titan.example"

[training_content]          # the EU template; keys: provider, representative, market_date, modalities, …
provider = "Titan consortium, Seoul"

[[accelerators]]            # for the compute total by hardware; device as members' usage names it
device = "H100"
peak_flops = "9.89e14"
devices = 8
"""


def read_about(path: Path | None) -> About:
    """The words in a file; none without one.

    Raises:
        BadInput: names the field.
    """
    if path is None:
        return About()
    try:
        body = tomllib.loads(read(path, "about.toml, as `dure release create --help` shows it").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    known = {f.name for f in fields(About)}
    for name in body:
        if name not in known:
            raise BadInput(f"{path}: {name} is unknown; fields are {', '.join(sorted(known))}")
    for key in body.get("training_content", {}):
        if key not in QUESTIONS:
            raise BadInput(f"{path}: training_content.{key} is unknown; keys are {', '.join(QUESTIONS)}")
    try:
        return schema.decode(About, {**schema.encode(About()), **body, "accelerators": _accelerators(body)}, path.name)
    except Refused as error:
        raise BadInput(str(error)) from None


def _accelerators(body: dict[str, Any]) -> list[dict[str, Any]]:
    rows = body.get("accelerators", [])
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise Refused("accelerators", "must be tables, [[accelerators]]")
    default = schema.encode(Accelerator("x", "0"))
    return [{"devices": default["devices"], **r, "peak_flops": str(r.get("peak_flops", ""))} for r in rows]
