"""Keys and passwords of a stack that was started with --secure: `STATE/secure`, made once, read by its owner alone.

    ca.pem              who vouches for the servers; the one file here that is no secret
    server.pem          key and certificate of Kafka and Cassandra
    client.pem          key and certificate of who may look at Flink's page and tell it what to do
    flink*.p12          the same as server.pem and ca.pem for Flink's page, as Java reads them
    internal*.p12       how Flink's own processes know each other; signed by nobody else
    ACCOUNT.password    one for each account of accounts.py
    keystore.password   of the .p12 files

The authority's own key is not kept: nobody can make further certificates, and a new one means new keys for all.
"""

import datetime
import ipaddress
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.local.ports import HOST
from deploy.local.server import replace_secret

ACCOUNTS = ("admin", "job", "trainer", "producer", "reader")
# 256 bits.
PASSWORD_BYTES = 32
# Longer than a local stack lives; `down --wipe` and `up` make new ones.
VALID = datetime.timedelta(days=825)
# Clocks differ a little.
EARLIER = datetime.timedelta(minutes=5)
PEM, NO_PASSWORD = serialization.Encoding.PEM, serialization.NoEncryption()


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Both, as text."""
        key = self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, NO_PASSWORD)
        return key + self.certificate.public_bytes(PEM)

    def keystore(self, password: bytes) -> bytes:
        """Both, as Java reads them."""
        encryption = serialization.BestAvailableEncryption(password)
        return pkcs12.serialize_key_and_certificates(b"freshrec", self.key, self.certificate, None, encryption)

    def truststore(self, password: bytes) -> bytes:
        """The certificate alone, as one that Java believes in."""
        trusted = [pkcs12.PKCS12Certificate(self.certificate, b"freshrec")]
        return pkcs12.serialize_java_truststore(trusted, serialization.BestAvailableEncryption(password))


class Keys:
    """The files of one stack."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "secure"
        self.ca_file = self.folder / "ca.pem"
        self.client_file = self.folder / "client.pem"

    def password_file(self, account: str) -> Path:
        """Where an account's password is."""
        return self.folder / f"{account}.password"

    @property
    def keystore_password(self) -> str:
        """Of every .p12 file here."""
        return self.password_file("keystore").read_text()

    def make(self) -> None:
        """Make what is not there: each password by itself, keys and certificates all together."""
        # Whoever may not enter the state folder reads none of its logs, rows and checkpoints either.
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.parent.chmod(0o700)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for account in ACCOUNTS:
            if not self.password_file(account).exists():
                replace_secret(self.password_file(account), new_password())
        if not self.ca_file.exists():
            self._make_certificates()

    def _make_certificates(self) -> None:
        """The authority's comes last: as long as it is not there, they are all made anew."""
        password = new_password()
        authority = make_pair("freshrec", None)
        server, client = make_pair("server", authority), make_pair("admin", authority)
        internal = make_pair("flink", None)
        for name, content in {
            "keystore.password": password,
            "server.pem": server.pem,
            "client.pem": client.pem,
            "flink.p12": server.keystore(password),
            "flink-ca.p12": authority.truststore(password),
            "internal.p12": internal.keystore(password),
            "internal-ca.p12": internal.truststore(password),
            "ca.pem": authority.certificate.public_bytes(PEM),
        }.items():
            replace_secret(self.folder / name, content)

    def client_context(self) -> ssl.SSLContext:
        """For Flink's page: knows the server, and can say who we are."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self.client_file)
        return context


def new_password() -> bytes:
    """One that nobody guesses, of letters, digits, - and _."""
    return secrets.token_urlsafe(PASSWORD_BYTES).encode()


def make_pair(name: str, authority: Pair | None) -> Pair:
    """A key of this machine and its certificate, signed by the authority; None: by itself, to be one."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    address = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(address, critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(authority.key if authority else key, hashes.SHA256())
    )
    return Pair(key, certificate)
