"""Keys and passwords: made once, read by their owner alone, and good for what they are for."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import pkcs12

from deploy.local.ports import HOST
from deploy.local.secure import ACCOUNTS, Keys, make_pair


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path / "state")
    keys.make()
    return keys


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = HOST) -> None:
    """One between two parties in memory. Raises SSLError of whichever refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=host)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for party in (one, other):
            try:
                party.do_handshake()
            except ssl.SSLWantReadError:
                continue
    one.write(b"x")
    assert other.read(1) == b"x"


def server_of(keys: Keys) -> ssl.SSLContext:
    """A server as ours are: it has the key, and wants a certificate of its client."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(keys.ca_file))
    context.load_cert_chain(keys.folder / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_nobody_else_can_read_any_of_it_nor_enter_the_state_folder(keys: Keys) -> None:
    files = list(keys.folder.iterdir())
    assert len(files) == len(ACCOUNTS) + 8
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert {folder.stat().st_mode & 0o777 for folder in (keys.folder, keys.folder.parent)} == {0o700}


def test_a_second_start_finds_what_the_first_one_made_and_another_stack_has_its_own(keys: Keys, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in keys.folder.iterdir()}
    keys.make()
    assert {file.name: file.read_bytes() for file in keys.folder.iterdir()} == before
    other = Keys(tmp_path / "other")
    other.make()
    assert not {name for name, content in before.items() if (other.folder / name).read_bytes() == content}
    passwords = {before[f"{account}.password"] for account in (*ACCOUNTS, "keystore")}
    assert len(passwords) == len(ACCOUNTS) + 1
    assert all(len(password) == 43 for password in passwords), "256 bits"


def test_certificates_that_a_killed_start_left_half_made_are_made_anew_and_passwords_stay(keys: Keys) -> None:
    passwords = {account: keys.password_file(account).read_text() for account in ACCOUNTS}
    server = (keys.folder / "server.pem").read_bytes()
    keys.ca_file.unlink()
    (keys.folder / "client.pem").unlink()
    keys.make()
    assert {account: keys.password_file(account).read_text() for account in ACCOUNTS} == passwords
    assert (keys.folder / "server.pem").read_bytes() != server
    handshake(server_of(keys), keys.client_context())


def test_a_password_that_was_removed_is_made_anew_alone(keys: Keys) -> None:
    before = {file.name: file.read_bytes() for file in keys.folder.iterdir()}
    keys.password_file("job").unlink()
    keys.make()
    after = {file.name: file.read_bytes() for file in keys.folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"job.password"}


def test_server_and_client_believe_each_other(keys: Keys) -> None:
    handshake(server_of(keys), keys.client_context())


def test_a_certificate_is_good_for_this_machine_alone(keys: Keys) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'example\.org'"):
        handshake(server_of(keys), keys.client_context(), "example.org")


def test_a_client_without_a_certificate_or_with_one_of_somebody_else_is_refused(keys: Keys, tmp_path: Path) -> None:
    nobody = ssl.create_default_context(cafile=str(keys.ca_file))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server_of(keys), nobody)
    own = tmp_path / "own.pem"
    own.write_bytes(make_pair("admin", make_pair("freshrec", None)).pem)
    forged = ssl.create_default_context(cafile=str(keys.ca_file))
    forged.load_cert_chain(own)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_of(keys), forged)


def test_a_client_refuses_a_server_of_another_stack(keys: Keys, tmp_path: Path) -> None:
    other = Keys(tmp_path / "other")
    other.make()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_of(other), keys.client_context())


def test_no_certificate_of_a_client_lets_it_join_flink_and_none_can_be_made_anew(keys: Keys) -> None:
    password = keys.keystore_password.encode()
    key, certificate, more = pkcs12.load_key_and_certificates((keys.folder / "internal.p12").read_bytes(), password)
    assert key is not None and certificate is not None and not more
    trusted = pkcs12.load_pkcs12((keys.folder / "internal-ca.p12").read_bytes(), password).additional_certs
    assert [one.certificate for one in trusted] == [certificate]
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_pkcs12((keys.folder / "internal.p12").read_bytes(), b"changeit")
    assert b"PRIVATE KEY" not in keys.ca_file.read_bytes()
