"""TLS contexts from the PEM files that a protocol names."""

from __future__ import annotations

import ssl

from medmvl.errors import WardError
from medmvl.ward.network_settings import TLSFiles


def client_context(files: TLSFiles) -> ssl.SSLContext:
    """Return the context of a connection that we open; the other side's certificate is always checked.

    Raises:
        WardError: if a file is missing or is not PEM.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca)
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise WardError(f"The TLS files of a destination cannot be used: {error}.") from error
    return context


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """Return the context of our listener; with `ca`, clients must present a certificate signed by it.

    Raises:
        WardError: if there is no certificate, or a file is missing or is not PEM.
    """
    if files.certificate is None:
        raise WardError("node.tls needs certificate (and key): a PEM file that the listener presents.")
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise WardError(f"The TLS files of the node cannot be used: {error}.") from error
    if files.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
