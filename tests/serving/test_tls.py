"""HTTPS, and certificates that cannot be used."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from ctrkit.errors import CtrkitError
from serving.settings import ServingSettings
from serving.tls import check_certificate
from tests.handmade import make_bundle
from tests.serving.live import service


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    return folder / "cert.pem", folder / "key.pem"


def test_it_answers_https_and_nothing_else(authority: trustme.CA, files: tuple[Path, Path], tmp_path: Path) -> None:
    make_bundle(tmp_path)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with service(tmp_path, ServingSettings(tls_cert=files[0], tls_key=files[1], poll_s=0), verify=trusting) as address:
        assert address.startswith("https://")
        answer = httpx.post(f"{address}/v1/models/clicks:score", json={"rows": [{"user": "u1"}]}, verify=trusting)
        assert answer.status_code == 200 and answer.json()["version"] == 1
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/healthz", verify=ssl.create_default_context())
        with pytest.raises(httpx.TransportError):
            httpx.get(address.replace("https", "http") + "/healthz")


def test_what_is_wrong_with_the_files_is_said(files: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = files
    (tmp_path / "text.pem").write_text("no certificate")
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tmp_path / "other.pem")
    cases: list[tuple[Path | None, Path | None, str]] = [
        (cert, None, "a certificate and no key"),
        (None, key, "a key and no certificate"),
        (tmp_path / "absent.pem", key, "certificate '.*absent.pem' cannot be read: No such file"),
        (cert, tmp_path / "absent.pem", "key '.*absent.pem' cannot be read: No such file"),
        (cert, tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "text.pem", key, "certificate '.*text.pem' cannot be used"),
        (cert, tmp_path / "text.pem", "key '.*text.pem' cannot be used"),
        (cert, tmp_path / "other.pem", "key '.*other.pem' does not belong to the certificate '.*cert.pem'"),
    ]
    for tls_cert, tls_key, message in cases:
        with pytest.raises(CtrkitError, match=message):
            check_certificate(ServingSettings(tls_cert=tls_cert, tls_key=tls_key))
    check_certificate(ServingSettings(tls_cert=cert, tls_key=key))
    check_certificate(ServingSettings())


def test_a_key_with_a_password_is_refused_and_not_asked_for(files: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as keys

    key = keys.load_pem_private_key(files[1].read_bytes(), None)
    sealed = keys.BestAvailableEncryption(b"secret")
    (tmp_path / "sealed.pem").write_bytes(key.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, sealed))
    with pytest.raises(CtrkitError, match="sealed.pem' is encrypted"):
        check_certificate(ServingSettings(tls_cert=files[0], tls_key=tmp_path / "sealed.pem"))
