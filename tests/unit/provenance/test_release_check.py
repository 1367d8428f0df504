"""A release is checked offline to the last byte; each twin is refused by name, and with its own exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.commands import dure
from support.small_release import NOW, SmallRelease, enter, small_release, write_model

from dure.audit.bundle import Bundle, export
from dure.audit.level1 import verify
from dure.audit.places import log_of
from dure.errors import DureError
from dure.provenance import check
from dure.provenance.attestation import check_enough, merge, sign, signers_of
from dure.provenance.candidate import ReleaseCa, create, run_of_model
from dure.provenance.errors import ContentDiffers, ExtraFiles, MissingFiles, NotSigned, OtherDtype, OtherShape
from dure.provenance.own_log import same_facts, source_of
from dure.provenance.spent import Spent


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SmallRelease:
    return small_release(tmp_path_factory.mktemp("release"))


def test_a_release_holds_and_says_who_signed(made):
    found = check.check_release(made.folder, made.pin)
    assert found.signers == ("ara", "chan") and found.index == len(made.log.entries) - 1
    facts = found.candidate.facts
    assert facts.tensors.parameters == 64 * 32 + 32 * 8 and facts.about.license == "Apache-2.0"
    assert [(m.member, m.data, m.tokens) for m in facts.members] == [(m, None, 0) for m in ("ara", "bora", "chan")]
    assert facts.compute.spent == Spent() and facts.binding.base_id is None


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def reweigh(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def swap(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**tensors, "b.weight": tensors["b.weight"][::-1].copy()}


TWINS: dict[str, tuple[Callable[[Path], object], type[DureError], str]] = {
    "one weight bit": (lambda f: flip(f / "model.safetensors", -9), ContentDiffers, "model.safetensors: tensor 'b.weight'"),
    "a layer with its rows swapped": (lambda f: reweigh(f, swap), ContentDiffers, "tensor 'b.weight'"),
    "half precision": (lambda f: reweigh(f, lambda t: {k: v.astype("<f2") for k, v in t.items()}), OtherDtype, "'a.weight' is float16"),
    "another shape": (lambda f: reweigh(f, lambda t: {**t, "b.weight": t["b.weight"].T.copy()}), OtherShape, "'b.weight' is [8, 32]"),
    "another tensor": (lambda f: reweigh(f, lambda t: {**t, "c": t["b.weight"]}), OtherShape, "'c' is in the weights and not listed"),
    "an extra file": (lambda f: (f / "modeling.py").write_text("1"), ExtraFiles, "modeling.py"),
    "an extra piece of evidence": (lambda f: (f / "evidence" / "more").write_text("1"), ExtraFiles, "evidence/more"),
    "a missing file": (lambda f: (f / "config.json").unlink(), MissingFiles, "config.json"),
    "a changed card": (lambda f: flip(f / "README.md", 30), ContentDiffers, "README.md"),
    "changed facts": (lambda f: flip(f / "release.json", 50), ContentDiffers, "release.json"),
    "a changed root": (lambda f: flip(f / "release-root.pem", 100), ContentDiffers, "release-root.pem"),
    "a link": (lambda f: (f / "x").symlink_to(f / "README.md"), DureError, "no plain file"),
    "no signatures": (lambda f: (f / "evidence" / "release.dsse.json").unlink(), NotSigned, "is a candidate"),
    "no entry": (lambda f: (f / "evidence" / "entry.json").unlink(), DureError, "entry.json is not there"),
    "a changed proof": (lambda f: flip(f / "evidence" / "release.tlog-proof", 40), DureError, ""),
    "a changed signature of a member": (lambda f: resign(f), NotSigned, "does not verify"),
}


def resign(folder: Path) -> None:
    path = folder / "evidence" / "release.dsse.json"
    body = json.loads(path.read_bytes())
    first, second = body["signatures"]
    first["sig"], second["sig"] = second["sig"], first["sig"]
    path.write_text(json.dumps(body, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("what", TWINS)
def test_a_tampered_twin_is_refused_by_name(made, tmp_path, what):
    tamper, refusal, words = TWINS[what]
    twin = made.twin(tmp_path / "m-1")
    tamper(twin)
    with pytest.raises(refusal) as refused:
        check.check_release(twin, made.pin)
    assert words in str(refused.value)


def terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


HOSTILE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model.sig": ("verify", lambda path: path.symlink_to("/dev/zero")),
    "evidence/release.tlog-proof": ("verify", terabyte),
    "evidence/trust/1.root.json": ("verify", os.mkfifo),
    "evidence/release.dsse.json": ("show", lambda path: path.symlink_to("/dev/zero")),
    "release.json": ("show", terabyte),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_without_an_end_is_refused_before_it_is_read(made, tmp_path, name):
    """Devices, pipes and sparse files of a terabyte travel in archives; each is one line, and takes neither the memory nor the evening."""
    command, make = HOSTILE[name]
    twin = made.twin(tmp_path / "m-1")
    (twin / name).unlink()
    make(twin / name)
    ran = dure("release", command, twin, *(("--root-sha256", made.pin.hex()) if command == "verify" else ()))
    assert ran.code == 2 and name in ran.err


def test_a_round_that_is_no_number_is_no_round(tmp_path):
    for number in ("\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", ""):
        save_file({"w": np.ones(2, "<f4")}, tmp_path / "model.safetensors", {"dure.run": "ab", "dure.round": number})
        assert run_of_model(tmp_path) == ("ab", None)


def test_each_kind_of_refusal_has_an_exit_code_of_its_own():
    codes = [kind.exit_code for kind in (NotSigned, ExtraFiles, MissingFiles, ContentDiffers, OtherDtype, OtherShape)]
    assert len(set(codes)) == len(codes) and not set(codes[1:]) & {0, 1, 2, 3, 4, 5, 6, 7}


def test_one_signature_too_few_names_who_is_missing(made):
    voters = made.candidate().voters
    with pytest.raises(NotSigned, match="signed by 1 of 3 members, 2 are needed; not yet by ara, chan"):
        check_enough(signers_of(made.attested(("bora",)), voters), voters)


def test_a_release_signed_by_k_minus_1_is_refused_even_if_it_is_in_the_log(tmp_path):
    """A coordinator that enters what too few signed is caught by the reader, and by the audit of the log."""
    made = small_release(tmp_path)
    from dure.statements.kinds import MemberSignature, ReleasePublished

    envelope = made.attested(("bora",))
    made.log.say(ReleasePublished(envelope.payload.decode(), (MemberSignature("bora", envelope.signatures[0][1]),) * 2))
    enter(made, envelope, len(made.log.entries) - 1)
    with pytest.raises(NotSigned, match="not yet by ara, chan"):
        check.check_release(made.folder, made.pin)
    place = log_of(made.log.founded.hub.directory)
    export(place.tree(), place.head(), place.roots, tmp_path / "bundle")
    result = verify(Bundle.open(tmp_path / "bundle"), made.pin)
    assert [f.where for f in result.findings] == [f"entry {len(made.log.entries) - 1}"]
    assert "urn:dure:release:v1" in envelope.payload.decode()


def test_level_1_of_the_audit_holds_with_a_release_in_the_log(made, tmp_path):
    place = log_of(made.log.founded.hub.directory)
    export(place.tree(), place.head(), place.roots, tmp_path / "bundle")
    result = verify(Bundle.open(tmp_path / "bundle"), made.pin)
    assert result.holds, result.findings
    assert result.history.counts["release-published"] == 1


def test_a_signature_over_another_release_and_a_strangers_are_named(made, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    candidate = made.candidate()
    with pytest.raises(NotSigned, match=r"x\.sig: is by no member's governance key"):
        merge(candidate.statement, {"x.sig": sign(candidate.statement, Ed25519PrivateKey.generate())}, candidate.voters)
    other = sign(candidate.statement.replace(b"m-1", b"m-2"), made.log.founded.members["ara"].governance_key)
    with pytest.raises(NotSigned, match=r"x\.sig: signs another release"):
        merge(candidate.statement, {"x.sig": other}, candidate.voters)


def test_the_same_log_model_and_words_give_the_same_files_but_for_the_signature(made, tmp_path):
    place, facts = log_of(made.log.founded.hub.directory), made.candidate().facts
    model = write_model(tmp_path / "model")
    source = source_of(place, model, facts.run.run.hex(), "m-1", 0, facts.log.size, facts.about)
    hub = made.log.founded.hub
    create(source, ReleaseCa(hub.release_root_pem, hub.release_ca_key), place.roots, tmp_path / "m-1", NOW)
    first, again = made.candidate().signed.files, made.candidate(tmp_path / "m-1").signed.files
    assert first == again


def test_a_member_compares_the_facts_with_its_own_log(made, tmp_path):
    """The coordinator says a member gave more tokens than the log has: whoever compares does not sign."""
    place = log_of(made.log.founded.hub.directory)
    same_facts(made.candidate(), place)
    from dataclasses import replace

    honest = made.candidate()
    liar = replace(honest, facts=replace(honest.facts, members=(replace(honest.facts.members[0], tokens=9), *honest.facts.members[1:])))
    with pytest.raises(ContentDiffers, match=r"release\.json: members is not what your own mirror"):
        same_facts(liar, place)


def test_the_commands_show_and_verify_and_their_exit_codes(made, tmp_path):
    pin = made.pin.hex()
    done = dure("release", "verify", made.folder, "--root-sha256", pin, "--json")
    assert done.code == 0 and json.loads(done.out)["signed_by"] == ["ara", "chan"], done.err
    assert "m-1 of titan" in dure("release", "show", made.folder).out
    twin = made.twin(tmp_path / "twin")
    flip(twin / "model.safetensors", -9)
    refused = dure("release", "verify", twin, "--root-sha256", pin)
    assert refused.code == 10 and "tensor 'b.weight'" in refused.err
    assert dure("release", "verify", made.folder, "--root-sha256", "00" * 32).code == 6


def test_create_and_sign_as_commands_and_publish_needs_k(made, tmp_path):
    """Up to the coordinator's answer; tests/e2e has the whole."""
    hub, run = made.log.founded.hub.directory, made.candidate().facts.run.run.hex()
    model, release = write_model(tmp_path / "model"), tmp_path / "m-2"
    (tmp_path / "about.toml").write_text(dure("release", "about").out)
    words = ("--about", tmp_path / "about.toml", "--run", run[:12], "--json", "--dir", hub)
    told = dure("release", "create", model, "--name", "m-2", "--out", release, *words)
    assert told.code == 0 and json.loads(told.out)["needed"] == 2, told.err
    again = dure("release", "create", model, "--name", "m-2", "--out", release, "--run", run, "--dir", hub)
    assert again.code == 4 and "is there already" in again.err
    ara = made.log.founded.members["ara"].directory
    signed = dure("release", "sign", release, "--yes", "--dir", ara)
    assert signed.code == 0 and "NOT compared" in signed.out, signed.err
    refused = dure("release", "publish", release, ara / "m-2.release.ara.sig", "--dir", hub)
    assert refused.code == 3 and "not yet by bora, chan" in refused.err
    assert "not signed" in dure("release", "sign", release, "--dir", ara, answers="n\n").err
