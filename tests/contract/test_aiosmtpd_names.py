"""What inbound relies on in aiosmtpd beyond its public names: a release that moves one of these fails here."""

import asyncio
import inspect

import aiosmtpd.smtp

from relayd.inbound.session import Session
from relayd.inbound.wire import Wire


async def test_every_verb_of_aiosmtpd_is_ours():
    """A verb of a later release would write replies of its own, past the loop that counts and logs."""
    for verb in Session.verbs.values():
        assert inspect.getmodule(verb).__name__.startswith("relayd.inbound"), verb


async def test_the_session_object_needs_nothing_of_a_constructor_that_does_not_run():
    server = aiosmtpd.smtp.SMTP.__new__(aiosmtpd.smtp.SMTP)
    server.loop = asyncio.get_running_loop()
    session = server._create_session()
    assert session.host_name is None
    assert session.extended_smtp is False
    assert session.authenticated is None


def test_callbacks_are_replaced_and_none_is_left_to_aiosmtpd():
    """aiosmtpd's own would start a second reader, reset a timer for each line and cancel the handler on EOF."""
    for callback in (
        "connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing",
    ):  # fmt: skip
        assert callback in vars(Wire), callback
        assert hasattr(aiosmtpd.smtp.SMTP, callback)
