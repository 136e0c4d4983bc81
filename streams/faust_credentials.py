"""The users' SASL and TLS properties, as Faust's client takes them."""

import ssl
from typing import Any

import faust

from schemas.errors import Fatal
from streams.settings import Settings


def faust_credentials(settings: Settings) -> dict[str, Any]:
    """Faust's `broker_credentials` for the same SASL and TLS properties; empty for a plain connection.

    Raises:
        Fatal: a mechanism that Faust's client does not have.
    """
    kafka = settings.kafka
    protocol = kafka.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return {}
    context = _ssl_context(kafka) if protocol in ("SSL", "SASL_SSL") else None
    if protocol == "SSL":
        return {"broker_credentials": faust.SSLCredentials(context)}
    mechanism = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "PLAIN")).upper()
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise Fatal(
            f"sasl.mechanism = {mechanism} is not one that dedup has: use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
        )
    return {
        "broker_credentials": faust.SASLCredentials(
            username=kafka.get("sasl.username", ""),
            password=kafka.get("sasl.password", ""),
            ssl_context=context,
            mechanism=mechanism,
        )
    }


def _ssl_context(kafka: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.get("ssl.ca.location"))
        if "ssl.certificate.location" in kafka:
            context.load_cert_chain(
                kafka["ssl.certificate.location"], kafka.get("ssl.key.location"), kafka.get("ssl.key.password")
            )
    except OSError as error:
        raise Fatal(f"the certificates that [kafka] names cannot be read: {error}") from None
    if kafka.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    return context
