"""The stock `model_signing verify certificate`, offline, accepts our model.sig and rejects the tampered twins; so do we."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from dure.errors import DureError
from dure.identity import tls
from dure.provenance.check import check_content
from dure.provenance.errors import ContentDiffers, ExtraFiles, MissingFiles, NotSigned
from dure.provenance.model_signature import check_names, digests_of, file_names, open_signature, sign_files

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def new_root(name: str = "titan") -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    return tls.issue_release_ca(key, name, NOW), key


def signed_folder(folder: Path, root: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey) -> Path:
    """A small release: files, one in a subfolder, and what comes after the signature."""
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (folder / "sub" / "config.json").write_text("{}")
    (folder / "release-root.pem").write_bytes(tls.pem(root))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = tls.issue_release_signer(root, ca_key, key.public_key(), "m", NOW)
    (folder / "model.sig").write_bytes(sign_files("m", digests_of(folder, file_names(folder)), key, certificate))
    (folder / "evidence").mkdir()
    (folder / "evidence" / "later").write_text("signatures of members")
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> tuple[Path, x509.Certificate]:
    root, ca_key = new_root()
    return signed_folder(tmp_path_factory.mktemp("oms") / "m-1", root, ca_key), root


def ours(folder: Path, root: x509.Certificate) -> None:
    signed = open_signature((folder / "model.sig").read_bytes(), root)
    check_names(signed, folder)
    check_content(signed, folder)


STOCK = """
import sys
from model_signing.verifying import Config
from model_signing.hashing import Config as Hashing
for folder, root in zip(sys.argv[1::2], sys.argv[2::2]):
    hashing = Hashing().set_ignored_paths(paths=[folder + "/model.sig"], ignore_git_paths=True)
    verifier = Config().use_certificate_verifier(certificate_chain=[root]).set_hashing_config(hashing)
    try:
        verifier.verify(folder, folder + "/model.sig")
        print("accepted")
    except Exception as error:
        print("rejected:", error)
"""
"""What the command does for each folder, in one process: it imports for seconds."""


def stock(*folders_and_roots: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", STOCK, *map(str, folders_and_roots)], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith(("accepted", "rejected"))]


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


TWINS: dict[str, tuple[Callable[[Path], object], type[DureError]]] = {
    "one flipped bit of a weight": (lambda f: flip(f / "model.safetensors", 5000), ContentDiffers),
    "a file added": (lambda f: (f / "extra.py").write_text("import os"), ExtraFiles),
    "a file removed": (lambda f: (f / "sub" / "config.json").unlink(), MissingFiles),
    "two files swapped": (lambda f: (f / "sub" / "config.json").write_bytes((f / "model.safetensors").read_bytes()), ContentDiffers),
}


def test_the_stock_verifier_accepts_ours_and_rejects_every_twin(release, tmp_path):
    """A stranger's root stands for a signer that is not pinned."""
    folder, root = release
    stranger, stranger_key = new_root("other")
    foreign = signed_folder(tmp_path / "foreign", stranger, stranger_key)
    asked, expected = [folder, folder / "release-root.pem", foreign, folder / "release-root.pem"], ["accepted", "rejected"]
    ours(folder, root)
    with pytest.raises(NotSigned, match="release CA"):
        ours(foreign, root)
    for what, (tamper, refusal) in TWINS.items():
        twin = Path(shutil.copytree(folder, tmp_path / what.replace(" ", "-")))
        tamper(twin)
        with pytest.raises(refusal):
            ours(twin, root)
        asked += [twin, folder / "release-root.pem"]
        expected.append("rejected")
    renamed = Path(shutil.copytree(folder, tmp_path / "another-name"))
    found = stock(*asked, renamed, folder / "release-root.pem")
    assert [line.split(":")[0] for line in found] == [*expected, "accepted"], found


@pytest.mark.deep
def test_the_very_command_of_the_documentation_accepts_ours(release):
    folder, _ = release
    command = [sys.executable, "-m", "model_signing", "verify", "certificate", str(folder), "--signature", str(folder / "model.sig")]
    done = subprocess.run([*command, "--certificate_chain", str(folder / "release-root.pem")], capture_output=True, text=True, check=False)
    assert (done.returncode, "Verification succeeded" in done.stdout + done.stderr) == (0, True), done.stderr


def test_a_leaf_of_the_root_that_may_not_sign_and_a_changed_bundle_are_refused(release):
    folder, root = release
    raw = (folder / "model.sig").read_bytes()
    with pytest.raises(DureError):
        open_signature(raw.replace(b'{"dsseEnvelope"', b'{"more":1,"dsseEnvelope"'), root)
    server_ca, server_key = new_root()
    leaf = tls.issue_coordinator_certificate(server_ca, server_key, server_key.public_key(), ["hub"], NOW)
    with pytest.raises(NotSigned, match="may not sign"):
        open_signature(sign_files("m", {"a": bytes(32)}, server_key, leaf), server_ca)
    for at in range(0, len(raw), 97):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(DureError):
            open_signature(changed, root)
