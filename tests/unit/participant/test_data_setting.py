"""Which data commitments a node's usage statements name: digests only, or the setting is refused where it is made."""

from __future__ import annotations

import pytest

from dure.errors import BadInput
from dure_participant import settings

ONE, OTHER = "ab" * 32, "cd" * 32


def test_the_digests_are_read_in_order_and_none_is_the_default(tmp_path):
    assert settings.load(tmp_path).commitments == ()
    settings.assign(tmp_path, {"data_commitments": f"{ONE},{OTHER}"})
    assert settings.load(tmp_path).commitments == (b"\xab" * 32, b"\xcd" * 32)
    settings.assign(tmp_path, {"data_commitments": ""})
    assert settings.load(tmp_path).commitments == ()


@pytest.mark.parametrize("bad", ["news", ONE[:-2], ONE.upper(), f"{ONE},", f"{ONE} {OTHER}", ",".join([ONE] * 17), ONE + "\n"])
def test_anything_else_is_refused_and_the_file_stays_as_it_was(tmp_path, bad):
    settings.assign(tmp_path, {"data_commitments": ONE})
    with pytest.raises(BadInput, match="up to 16 digests"):
        settings.assign(tmp_path, {"data_commitments": bad})
    assert settings.load(tmp_path).data_commitments == ONE
