"""A certificate and its key, looked at before the service starts: a wrong one is named."""

import ssl
from pathlib import Path

from ctrkit.errors import CtrkitError
from serving.settings import ServingSettings


def check_certificate(settings: ServingSettings) -> None:
    """Raises CtrkitError when TLS is asked for and its files cannot be used; it names the one at fault."""
    if settings.tls_cert is None and settings.tls_key is None:
        return
    if settings.tls_cert is None or settings.tls_key is None:
        given, lacking = ("key", "certificate") if settings.tls_cert is None else ("certificate", "key")
        raise CtrkitError(f"TLS was given a {given} and no {lacking}", "Give both --tls-cert and --tls-key")
    for what, file in (("certificate", settings.tls_cert), ("key", settings.tls_key)):
        _check_readable(what, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cafile=settings.tls_cert)
    except ssl.SSLError as error:
        raise CtrkitError(
            f"the TLS certificate '{settings.tls_cert}' cannot be used: {error.reason or error}", "Give a PEM file with the whole chain"
        ) from error

    def no_password() -> str:  # a service must start without anybody at a keyboard
        raise CtrkitError(f"the TLS key '{settings.tls_key}' is encrypted", "Give one without a password that only the service may read")

    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"the TLS key '{settings.tls_key}' does not belong to the certificate '{settings.tls_cert}'"
            raise CtrkitError(problem, "Give the key that the certificate was made for") from error
        raise CtrkitError(f"the TLS key '{settings.tls_key}' cannot be used: {error.reason or error}", "Give a PEM file") from error


def _check_readable(what: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise CtrkitError(f"the TLS {what} '{file}' cannot be read: {error.strerror}") from error
