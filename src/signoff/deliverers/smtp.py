"""E-mail through an SMTP server: `smtps://` with TLS from the start, `smtp://` with STARTTLS wherever it is offered."""

import asyncio
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import unquote, urlsplit

from signoff.errors import Undelivered

TIMEOUT_SECONDS = 20.0


class SmtpMailer:
    """An SMTP server at a URL; see `deliverer.Mailer`. Each message has a connection of its own."""

    def __init__(self, url: str, *, from_address: str) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "smtps"
        self._host = parts.hostname or ""
        self._port = parts.port or (465 if self._is_tls else 587)
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._from_address = from_address

    async def send(self, message_id: str, to: Sequence[str], subject: str, text: str) -> None:
        """See `deliverer.Mailer`."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._from_address, ", ".join(to), subject
        message["Date"], message["Message-ID"] = formatdate(), f"<{message_id}@signoff>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answer by a machine
        message.set_content(text)
        try:
            await asyncio.to_thread(self._send, message)
        except (OSError, smtplib.SMTPException) as error:
            reason = f"{type(error).__name__}; check `smtp_url` and `smtp_from`"
            raise Undelivered(f"The mail server {self._host} did not accept the message: {reason}.") from error

    def _send(self, message: EmailMessage) -> None:
        context = ssl.create_default_context()
        if self._is_tls:
            server: smtplib.SMTP = smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT_SECONDS, context=context)
        else:
            server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT_SECONDS)
        with server:
            server.ehlo()
            if not self._is_tls and server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
            if self._user:
                if not self._is_tls and not server.has_extn("auth"):
                    raise smtplib.SMTPNotSupportedError("The server offers no sign-in.")
                server.login(self._user, self._password)
            server.send_message(message)
