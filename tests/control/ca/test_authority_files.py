"""The authority's files: whole, ours alone, and never half written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshfast.control.ca import AuthorityError, CertificateAuthority

NAMES = ("root.pem", "issuer.pem")
KILLS = 30


def open_in(directory: Path) -> CertificateAuthority:
    return CertificateAuthority.open(directory, "cluster.local")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The files of an authority."""
    open_in(tmp_path / "ca")
    return tmp_path / "ca"


def refusal(directory: Path, trust_domain: str = "cluster.local") -> str:
    with pytest.raises(AuthorityError) as refused:
        CertificateAuthority.open(directory, trust_domain)
    return str(refused.value)


def test_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_in(tmp_path / "ca")
    finally:
        os.umask(before)
    directory = tmp_path / "ca"
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert modes == dict.fromkeys(NAMES, 0o600)


def test_opening_again_is_the_same_authority(directory: Path) -> None:
    before = {name: (directory / name).read_bytes() for name in NAMES}
    bundle = open_in(directory).bundle()
    assert open_in(directory).bundle() == bundle
    assert {name: (directory / name).read_bytes() for name in NAMES} == before


@pytest.mark.parametrize("mode", [0o750, 0o701])
def test_refuses_a_directory_that_lets_others_in(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    assert f"{mode:04o}" in refusal(directory)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_refuses_a_key_that_lets_others_in(directory: Path, name: str, mode: int) -> None:
    (directory / name).chmod(mode)
    assert f"{mode:04o}" in refusal(directory)


def test_refuses_files_of_another_user(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert f"belongs to user {owner}, not to {owner + 1}" in refusal(directory)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_link_in_the_place_of_a_key(directory: Path, name: str) -> None:
    (directory / name).rename(directory / "elsewhere")
    (directory / name).symlink_to("elsewhere")
    assert name in refusal(directory)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\0" * 100_000])
def test_refuses_a_damaged_file(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    assert name in refusal(directory)


def test_refuses_a_key_that_is_not_the_certificate_s(directory: Path, tmp_path: Path) -> None:
    open_in(tmp_path / "other")
    begin = b"-----BEGIN CERTIFICATE-----"
    key = (directory / "root.pem").read_bytes().partition(begin)[0]
    certificate = (tmp_path / "other" / "root.pem").read_bytes().partition(begin)[2]
    (directory / "root.pem").write_bytes(key + begin + certificate)
    assert "do not belong together" in refusal(directory)


def test_a_missing_root_is_not_made_anew_beside_its_issuer(directory: Path) -> None:
    (directory / "root.pem").unlink()
    assert "root.pem is missing" in refusal(directory)
    assert not (directory / "root.pem").exists()


def test_refuses_another_trust_domain(directory: Path) -> None:
    assert "'cluster.local', not to 'other.domain'" in refusal(directory, "other.domain")


def test_what_was_left_aside_is_removed_unread(directory: Path) -> None:
    (directory / "root.pem.new").write_bytes(b"half")
    open_in(directory)
    assert sorted(path.name for path in directory.iterdir()) == sorted(NAMES)


WRITER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from meshfast.control.ca import CertificateAuthority
directory, now = Path(sys.argv[1]), datetime.now(UTC)
authority = CertificateAuthority.open(directory, "cluster.local")
print("open", flush=True)
while True:  # replaces the issuer as fast as it can
    authority._issuer = authority._root
    now += timedelta(days=3000)
    authority.renew_issuer(datetime.now(UTC) + timedelta(days=3000))
"""


def test_a_killed_writer_leaves_whole_files(directory: Path) -> None:
    root = open_in(directory).bundle()
    replaced = set()
    for round_number in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        before = (directory / "issuer.pem").read_bytes()
        changes = 0
        while changes <= round_number % 3:  # some writes in, the kill comes at any point of one
            if (now := (directory / "issuer.pem").read_bytes()) != before:
                before, changes = now, changes + 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert open_in(directory).bundle() == root
        replaced.add((directory / "issuer.pem").read_bytes())
    assert len(replaced) == KILLS
