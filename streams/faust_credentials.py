"""The users' SASL and TLS properties, as Faust's client takes them."""

import ssl
from typing import Any

import faust

from schemas.errors import Fatal
from streams.settings import Settings

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_LIBRDKAFKA_MECHANISM = "GSSAPI"  # where none is set
_SSL_PROPERTIES = {
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
}


def faust_credentials(settings: Settings) -> dict[str, Any]:
    """Faust's `broker_credentials` for the same SASL and TLS properties; empty for a plain connection.

    Raises:
        Fatal: a mechanism or a property that Faust's client does not have, or a certificate that cannot be read.
    """
    kafka = settings.kafka
    protocol = kafka.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return {}
    context = _ssl_context(kafka) if protocol in ("SSL", "SASL_SSL") else None
    if protocol == "SSL":
        return {"broker_credentials": faust.SSLCredentials(context)}
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", _LIBRDKAFKA_MECHANISM)).upper()
    if mechanism not in _MECHANISMS:
        raise Fatal(f"sasl.mechanism = {mechanism} is not one that dedup has: set one of {', '.join(_MECHANISMS)}")
    return {
        "broker_credentials": faust.SASLCredentials(
            username=kafka.get("sasl.username", ""),
            password=kafka.get("sasl.password", ""),
            ssl_context=context,
            mechanism=mechanism,
        )
    }


def _ssl_context(kafka: dict[str, str]) -> ssl.SSLContext:
    for name in sorted(kafka):
        if name.startswith("ssl.") and name not in _SSL_PROPERTIES:  # what it asks for must not be left out silently
            raise Fatal(f"{name} is not one that dedup has: use {', '.join(sorted(_SSL_PROPERTIES))}")
    try:
        context = ssl.create_default_context(cafile=kafka.get("ssl.ca.location"), cadata=kafka.get("ssl.ca.pem"))
        if "ssl.certificate.location" in kafka:
            context.load_cert_chain(
                kafka["ssl.certificate.location"], kafka.get("ssl.key.location"), kafka.get("ssl.key.password")
            )
    except OSError as error:
        raise Fatal(f"the certificates that [kafka] names cannot be read: {error}") from None
    if kafka.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    if kafka.get("enable.ssl.certificate.verification", "true") == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
