"""Independent clients submit over TLS and AUTH, and the message arrives byte for byte behind the trace header."""

import asyncio
import shutil
import smtplib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.conftest import Eventually
from tests.fakes.relay_process import HOST, RelayProcess
from tests.fakes.sink import Sink

USER = "app@example.net"
PASSWORD = "correct horse battery staple"
SENDER = "sender@example.net"
RECIPIENTS = ("one@example.org", "two@example.org")
MESSAGE = """\
From: =?utf-8?q?Ren=C3=A9e?= <sender@example.net>
To: one@example.org, two@example.org
Subject: interop
Date: Sat, 21 Nov 2026 10:00:00 +0000
Message-ID: <interop@example.net>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Zwölf Boxkämpfer, съешь же ещё, いろは 📮
.
..
.hidden
a line with trailing blanks  \x20
\ta tab

From the start of a line
the end.
""".replace("\n", "\r\n").encode()

Submit = Callable[[RelayProcess, bool], Awaitable[None]]


async def run(program: str, *arguments: str, given: bytes = b"") -> None:
    """Run a client; a failed test when it is not installed (tests/interop/install.sh), or ends with an error."""
    path = shutil.which(program)
    assert path, f"{program} is not installed"
    process = await asyncio.create_subprocess_exec(
        path, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(given), 60)
    assert process.returncode == 0, output.decode(errors="replace")


async def by_smtplib(relay: RelayProcess, implicit: bool) -> None:
    def submit() -> None:
        context = relay.client_context()
        if implicit:
            client: smtplib.SMTP = smtplib.SMTP_SSL(HOST, relay.ports["submissions"], context=context, timeout=30)
        else:
            client = smtplib.SMTP(HOST, relay.ports["submission"], timeout=30)
        with client:
            if not implicit:
                client.starttls(context=context)
            client.login(USER, PASSWORD)
            assert client.sendmail(SENDER, RECIPIENTS, MESSAGE, mail_options=["BODY=8BITMIME"]) == {}

    await asyncio.to_thread(submit)


async def by_swaks(relay: RelayProcess, implicit: bool) -> None:
    data = relay.directory / "swaks.eml"
    data.write_bytes(MESSAGE.removesuffix(b"\r\n"))  # swaks ends the data with a CRLF of its own
    await run(
        "swaks", "--server", HOST, "--port", str(relay.ports["submissions" if implicit else "submission"]),
        "--tls-on-connect" if implicit else "--tls", "--tls-verify", "--tls-ca-path", str(relay.ca),
        "--auth", "PLAIN" if implicit else "LOGIN", "--auth-user", USER, "--auth-password", PASSWORD,
        "--from", SENDER, "--to", ",".join(RECIPIENTS), "--helo", "client.example", "--data", f"@{data}",
    )  # fmt: skip


async def by_curl(relay: RelayProcess, implicit: bool) -> None:
    scheme, port = ("smtps", relay.ports["submissions"]) if implicit else ("smtp", relay.ports["submission"])
    recipients = [word for recipient in RECIPIENTS for word in ("--mail-rcpt", recipient)]
    await run(
        "curl", "--silent", "--show-error", "--url", f"{scheme}://{HOST}:{port}/client.example", "--ssl-reqd",
        "--cacert", str(relay.ca), "--user", f"{USER}:{PASSWORD}", "--mail-from", SENDER, *recipients,
        "--upload-file", "-", given=MESSAGE,
    )  # fmt: skip


async def by_msmtp(relay: RelayProcess, implicit: bool) -> None:
    configuration = relay.directory / "msmtprc"
    configuration.write_text(
        f"account default\nhost {HOST}\nport {relay.ports['submissions' if implicit else 'submission']}\n"
        f"tls on\ntls_starttls {'off' if implicit else 'on'}\ntls_trust_file {relay.ca}\n"
        f'auth {"login" if implicit else "plain"}\nuser {USER}\npassword "{PASSWORD}"\nfrom {SENDER}\ndomain client.example\n'
    )
    configuration.chmod(0o600)
    # msmtp reads text as a sendmail does: lines ended by LF.
    await run("msmtp", f"--file={configuration}", "--", *RECIPIENTS, given=MESSAGE.replace(b"\r\n", b"\n"))


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        yield sink


@pytest.fixture
async def relay(tmp_path: Path, sink: Sink) -> AsyncIterator[RelayProcess]:
    relay = RelayProcess(tmp_path, [sink.port])
    relay.add_user(USER, PASSWORD)
    async with relay:
        yield relay


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit-tls"])
@pytest.mark.parametrize("submit", [by_smtplib, by_swaks, by_curl, by_msmtp], ids=lambda one: one.__name__)
async def test_submitted_mail_arrives_byte_for_byte(
    submit: Submit, implicit: bool, relay: RelayProcess, sink: Sink, eventually: Eventually
) -> None:
    await submit(relay, implicit)
    await eventually(lambda: sink.received)
    (received,) = sink.received
    assert received.addresses == RECIPIENTS
    assert received.sender.startswith(b"<sender@example.net>")
    assert received.behind_trace() == MESSAGE
    await relay.emptied()
