"""What inbound relies on in aiosmtpd beyond its public names: a release that moves one of these fails here."""

import asyncio
import inspect

import aiosmtpd.smtp

from relayd.inbound.session import Session
from relayd.inbound.wire import Wire


class Plain(aiosmtpd.smtp.SMTP):
    async def smtp_NOOP(self, arg):
        return "ours"


async def test_the_constructor_collects_verbs_through_dir():
    server = Plain(object(), hostname="relay.test", loop=asyncio.get_running_loop())
    assert await server._smtp_methods["NOOP"]("") == "ours"
    assert {"HELO", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "QUIT"} <= server._smtp_methods.keys()


async def test_every_verb_of_aiosmtpd_is_ours():
    """A verb of a later release would write replies of its own, past the loop that counts and logs."""
    for verb in Session._verbs:
        assert inspect.getmodule(getattr(Session, verb)).__name__.startswith("relayd.inbound"), verb


async def test_the_session_object():
    server = Plain(object(), hostname="relay.test", loop=asyncio.get_running_loop())
    session = server._create_session()
    assert session.host_name is None
    assert session.extended_smtp is False
    assert session.authenticated is None
    assert server.loop is asyncio.get_running_loop()


def test_callbacks_are_replaced_and_none_is_left_to_aiosmtpd():
    """aiosmtpd's own would start a second reader, reset a timer for each line and cancel the handler on EOF."""
    for callback in (
        "connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing",
    ):  # fmt: skip
        assert callback in vars(Wire), callback
        assert hasattr(aiosmtpd.smtp.SMTP, callback)


def test_nothing_of_ours_hides_an_attribute_the_constructor_sets():
    """Names set by aiosmtpd's constructor that we also define would be overwritten, or overwrite."""
    source = inspect.getsource(aiosmtpd.smtp.SMTP.__init__)
    ours = {name for part in Session.__mro__ if part.__module__.startswith("relayd.") for name in vars(part)}
    taken = {
        word.split("self.")[1].split(" ")[0].rstrip(":") for word in source.splitlines() if "        self." in word
    }
    assert not ours & taken - {"session", "transport"} - {"__annotations__"}
