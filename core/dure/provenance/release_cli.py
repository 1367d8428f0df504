"""`dure release`: published weights with evidence. Needs nothing but the bare `dure`; only `publish` asks the coordinator."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit.places import log_of
from dure.charter import root as charter_root
from dure.charter.coordinator import CoordinatorFolder
from dure.console import DEFAULT_DIR, AsJson, Dir, Yes, draw, err, one_line_errors, out, say, show_json
from dure.errors import BadInput, NotAuthorised
from dure.identity.files import read, write_atomic
from dure.identity.member import MemberFolder
from dure.provenance import check
from dure.provenance.about import EXAMPLE, read_about
from dure.provenance.attestation import check_enough, merge, published, read_signatures, sign, signers_of
from dure.provenance.candidate import ReleaseCa, create, run_of_model
from dure.provenance.documents.words import energy, flop, said, start, when
from dure.provenance.facts import FACTS, Facts
from dure.provenance.model_signature import EVIDENCE, file_names
from dure.provenance.own_log import same_facts, source_of, write_evidence
from dure.provenance.serving import serving_coordinator
from dure.statements import schema
from dure.statements.dsse import Envelope

app = typer.Typer(no_args_is_help=True, help="Releases: published weights with evidence, signed by k members.")
Folder = Annotated[Path, typer.Argument(metavar="RELEASE", help="The release's folder.")]
Pin = Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, compared over a second channel.")]
PUBLISH_S = 90.0


@app.callback()
def group() -> None:
    """Releases: published weights with evidence, signed by k members."""


@app.command("about")
@one_line_errors
def about_command() -> None:
    """Print an about.toml to fill in: your own words for the model card. Every line may be left out; then it reads "not declared".

    Example: dure release about > about.toml
    """
    print(EXAMPLE, end="")


@app.command("create")
@one_line_errors
def create_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder with the weights and what belongs to them.")],
    name: Annotated[str, typer.Option(help="The release's name: letters, digits, '.', '_' and '-'.")],
    target: Annotated[Path, typer.Option("--out", help="The release's folder; must not be there yet.")],
    run: Annotated[str, typer.Option("--run", help="The run, where the weights do not say it themselves.")] = "",
    round_number: Annotated[int | None, typer.Option("--round", min=0, help="Its round; default: as the weights say.")] = None,
    about: Annotated[Path | None, typer.Option(help="Your own words; `dure release about` prints one.")] = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a release candidate from an exported model, at the coordinator.

    MODEL is the folder that `dure run export` wrote, with config.json, tokenizer and whatever else belongs to the model beside the weights.
    The facts are drawn from the log's newest cosigned head. What nobody declared reads "not declared"; your own words come from about.toml
    (`dure release about` prints one).

    Example: dure release create model --name titan-1.0 --out titan-1.0 --about about.toml --dir hub
    """
    folder = CoordinatorFolder.load(directory)
    place = log_of(directory)
    told, told_round = run_of_model(model)
    if not (run or told):
        raise BadInput(f"{model}: the weights do not say of which run they are; give --run")
    wanted = told_round if round_number is None and not run else round_number
    source = source_of(place, model, run or told, name, wanted, place.head().checkpoint.size, read_about(about))
    ca = ReleaseCa(folder.release_root_pem, folder.release_ca_key)
    if ca.root_pem != place.charter.terms.coordinator.release_ca_pem.encode():
        raise NotAuthorised(f"{directory}: its release CA is not the one the charter names; members would refuse the release")
    facts = create(source, ca, place.roots, target, datetime.fromtimestamp(time.time(), UTC))
    if as_json:
        show_json(
            {"release": str(target), "name": name, "run": facts.run.run.hex(), "round": facts.run.round, "needed": place.charter.terms.k}
        )
        return
    for line in described(facts):
        say(line)
    say(f"next: send {target} to the members; {place.charter.terms.k} of them must `dure release sign {target}`")


def described(facts: Facts) -> list[str]:
    """A release in words, for whoever must decide on it."""
    run, tensors, compute, spent = facts.run, facts.tensors, facts.compute, facts.compute.spent
    lines = [
        f"release {facts.name} of {facts.consortium}, as of {when(facts.log.time)} ({facts.log.size} entries of the log)",
        f"  {tensors.parameters:,} parameters, {', '.join(tensors.dtypes)}; weights id {tensors.weights_id.hex()}",
        f"  run {run.run.hex()[:12]} ({run.app_name} {run.app_version}), round {run.round} of {run.rounds}; bases {run.lineage}",
        f"  began with {start(run)}",
        f"  licence {said(facts.about.license)}; {compute.tokens:,} tokens declared",
        f"  compute by formula {flop(spent.formula_flop, compute)}, measured {flop(spent.measured_flop, compute)}, "
        f"by hardware {flop(spent.hardware_flop, compute)}; energy {energy(compute)}",
    ]
    lines += [f"  {m.member:<32} in {m.counted} sums; data: {said(m.data)}; trained in: {said(m.environment)}" for m in facts.members]
    return lines


@app.command("sign")
@one_line_errors
def sign_command(
    folder: Folder,
    node: Annotated[Path | None, typer.Option(help="Your node's folder: the facts are compared with your own mirror of the log.")] = None,
    directory: Dir = DEFAULT_DIR,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """See a release candidate in words, and sign it with your governance key, on your own machine.

    Checked first: every file, the signature under the release CA that your pinned charter names, and, with --node, every fact against what
    your own node mirrored of the log.

    Example: dure release sign titan-1.0 --node krafton/node --dir krafton/keys
    """
    member = MemberFolder.load(directory)
    if member.pin is None:
        raise NotAuthorised(f"{directory}: no charter is pinned here; `dure member trust DIGEST`")
    candidate = check.check_candidate(folder, check.roots_of(folder), member.pin, _progress())
    if candidate.charter.member(member.member.id).governance_key != member.member.governance_key:
        raise NotAuthorised(f"the charter's governance key of {member.member.id} is not the one in {directory}")
    if node is not None:
        same_facts(candidate, log_of(node))
    if not as_json:
        for line in described(candidate.facts):
            say(line)
        compared = "as your own mirror of the log has them" if node is not None else "NOT compared with your own mirror of the log (--node)"
        say(f"every file is as signed; the facts are {compared}")
    if not yes and not typer.confirm("Sign this release for your organisation?"):
        raise BadInput("not signed")
    path = directory / f"{candidate.facts.name}.release.{member.member.id}.sig"
    write_atomic(path, sign(candidate.statement, member.governance_key).to_bytes())
    if as_json:
        show_json({"signature": str(path), "release": candidate.facts.name, "compared": node is not None})
    else:
        say(f"signed: {path}; send it to the administrator")


@app.command()
@one_line_errors
def publish(
    folder: Folder,
    signatures: Annotated[list[Path], typer.Argument(help="Signature files of the members.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Enter a release into the log, at the coordinator; refused below k, naming who is missing.

    Writes the members' signatures, the entry and its proof into RELEASE/evidence. Saying it again is harmless.

    Example: dure release publish titan-1.0 *.release.*.sig --dir hub
    """
    place = log_of(directory)
    candidate = check.check_candidate(folder, list(place.roots), place.pin, _progress())
    files = [(p.name, read(p, "a member's signature, made with `dure release sign`")) for p in signatures]
    envelope = merge(candidate.statement, read_signatures(files), candidate.voters)
    check_enough(signers_of(envelope, candidate.voters), candidate.voters)
    arguments = {"entry": schema.encode(published(envelope, candidate.voters))}
    told = serving_coordinator("release publish")(directory, "release-publish", arguments, timeout_s=PUBLISH_S)
    entry, proof = (base64.b64decode(told[name]) for name in ("entry", "proof"))
    write_evidence(candidate, place, envelope, entry, proof)
    found = check.check_release(folder, place.pin)
    if as_json:
        show_json({"release": str(folder), "index": found.index, "size": found.size, "signed_by": list(found.signers)})
        return
    say(f"{folder}: published, entry {found.index} of the log; signed by {', '.join(found.signers)}")
    say(f"next: dure release verify {folder} --root-sha256 {place.pin.hex()}")


@app.command()
@one_line_errors
def show(folder: Folder, as_json: AsJson = False) -> None:
    """A release in words, as its own files say it. Checks nothing: that is `dure release verify`.

    Example: dure release show titan-1.0
    """
    file_names(folder)  # links, pipes and devices are not read
    facts = Facts.from_json(read(folder / FACTS, "a release's facts; is this a release?"))
    attested = folder / EVIDENCE / check.ATTESTATION
    count = len(Envelope.from_bytes(read(attested, "the members' signatures")).signatures) if attested.exists() else 0
    if as_json:
        show_json({"facts": schema.encode(facts), "signatures": count, "published": (folder / EVIDENCE / check.PROOF).exists()})
        return
    for line in described(facts):
        say(line)
    say(f"{count} members' signatures beside it; not checked here" if count else "a candidate: no member's signature is in it yet")


@app.command()
@one_line_errors
def verify(
    folder: Folder,
    pin: Pin,
    as_json: AsJson = False,
) -> None:
    """Check a release offline: files, signer, members' signatures, its place in the log. Exit 0 only if all of it holds.

    Exit codes: 3 not signed by enough members or not by the release CA, 6 wrong pin, 8 a file nobody signed, 9 a file is missing,
    10 a file or tensor is not what was signed, 11 weights in another dtype, 12 of another architecture; 1 and 2 anything else.

    Example: dure release verify titan-1.0 --root-sha256 3f9a…
    """
    from dure.audit.cli import pin_of
    from dure.audit.level1 import WrongPin

    wanted = pin_of(pin)
    first = charter_root.digest(charter_root.parse(check.roots_of(folder)[0]))
    if first != wanted:
        raise WrongPin(
            f"{folder}: its charter version 1 has digest {first.hex()}, pinned is {wanted.hex()}: another consortium, or a forgery"
        )
    found = check.check_release(folder, wanted, _progress())
    table = check.rows(found)
    if as_json:
        rows = [{"claim": r.claim, "how": r.how, "detail": r.detail} for r in table]
        facts = found.candidate.facts
        show_json({"holds": True, "name": facts.name, "run": facts.run.run.hex(), "signed_by": list(found.signers), "table": rows})
        return
    draw(_table(table))
    say("the release holds")


def _table(rows: list[Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("how", "claim", "detail"):
        table.add_column(name)
    for row in rows:
        table.add_row(row.how, row.claim, row.detail)
    return table


def _progress() -> Callable[[str], None]:
    if not out.is_terminal:
        return lambda _name: None
    return lambda name: err.print(f"reading {name}", markup=False, end="\r")
