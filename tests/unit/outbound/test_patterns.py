"""Replies as providers document them, and what they are taken for; the table's form; its time on hostile text."""

import importlib.resources
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd import metrics
from relayd.outbound import patterns
from relayd.outbound.classify import Stage
from relayd.outbound.patterns import Category, Effect, PatternError, category, effect, load
from relayd.smtp import reply
from relayd.smtp.reply import Reply, ReplyParser

# What each provider documents, with addresses replaced: postmaster pages, server manuals, RFCs.
SAID = {
    "connection_limit": [
        "421 4.7.0 mx.example.net Error: too many connections from 192.0.2.1",  # Postfix anvil
        "421 4.3.2 All server ports are busy",  # Postfix postscreen
        "421 Too many concurrent SMTP connections from this IP address; please try again later",  # Exim
        "421 Too much load; please try again later",  # Exim
        "421 4.3.2 Too many open connections.",  # Sendmail
        "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",  # Exchange
        "421 mwinf5c63 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]",
        "421 [Too many sessions opened]",  # Comcast
        "421 4.7.0 service not available (connection refused, too many connections)",  # Proofpoint
        "421 Too many concurrent connections from this client (G2)",  # Rackspace
        "421 mxcmd09.example bizsmtp aeDm1w01G0T9uPK01 Too many connections, try later.",
        "451 The server has reached its limit for processing requests from your host.",  # MessageLabs
        "550 Too many SMTP sessions for this host",
        "452 4.3.2 Exceeds per-domain connection limit for peer.example",  # SendGrid
    ],
    "session_limit": [
        "421 Max message per connection reached, closing transmission channel",  # Yahoo
        "421 too many messages in this connection",  # Exim
        "421 4.7.0 Too many messages for this session",
        "452 4.5.3 4f8a1c2e Too many messages sent",  # OpenSMTPD
        "451 4.5.3 Too many transactions in this session",
        "421 4.7.0 mr85p00im-zteg06023901.me.com Error: too many errors",  # Apple, Postfix
        "421 4.7.0 msfrf2604.sfr.fr Error: too many errors",
    ],
    "rate": [
        "421-4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address. To protect our\r\n421 4.7.28 users from spam, mail sent from your IP address has been temporarily rate limited. - gsmtp",
        "421 4.7.0 Our system has detected an unusual rate of unsolicited mail originating from your IP address.",
        "550 5.7.28 There is an unusual rate of unsolicited mail originating from your SPF domain [peer.example].",
        "450-4.2.1 The user you are trying to contact is receiving mail too quickly.\r\n450 4.2.1 Please resend your message at a later time.",
        "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.",
        "421 4.4.5 Server busy, try again later.",  # Gmail
        "421 4.7.0 Try again later, closing connection.",  # Gmail
        "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail delivery information, see https://aka.ms/postmaster (S775)",
        "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714) [AM4PEPF00027A65.eurprd04.prod.outlook.com]",
        "421 RP-001 The mail server IP connecting to Outlook.com server has exceeded the rate limit allowed.",
        "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
        "421 4.7.0 [GL01] Message from 192.0.2.1 temporarily deferred - 4.16.50.",
        "451 Resources temporarily unavailable. Please try again later [#4.16.5].",  # Yahoo
        "421 4.7.1 Messages to <b@icloud.com> deferred due to excessive volume. Try again later - https://support.apple.com/en-us/HT204137",
        "421 Rate limit reached. Please try again later",  # WEB.DE
        "452 4.3.2 Connection rate limit exceeded.",  # Sendmail
        "421 4.3.2 Connection rate limit exceeded.",
        "450 4.7.1 Error: too much mail from 192.0.2.1",  # Postfix
        "450 4.7.1 Error: too many recipients from 192.0.2.1",
        "421 4.7.0 Too many messages, slow down",
        "450 4.2.1 <b@peer.example>: Mailbox received too much email in a short period of time (G30)",  # Rackspace
        "451 4.7.1 Received too many messages from a new or untrusted IP (G28)",
        "421 resimta-c1p-027569.sys.comcast.net Try again later, RL000001",
        "421 Too many errors from your ip (192.0.2.1), please visit http://postmaster.free.fr/",
        "451 4.7.1 Sorry, the recipient has exceeded their message rate limit. Try again later.",  # Yandex
        "451 Ratelimit exceeded for mailbox b@mail.ru",
        "451 4.7.1 Service unavailable - try again later",  # iCloud; said by rspamd too
        "451 Throttling failure: maximum sending rate exceeded",  # SES
    ],
    "greylist": [
        "450 4.2.0 <b@peer.example>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/peer.example.html",
        "451 4.7.1 Greylisting in action, please come back in 00:05:00",  # milter-greylist
        "450 4.7.1 Greylisted",
        "450 4.7.1 <b@peer.example>: Recipient address rejected: Greylisted for 5 minutes",  # sqlgrey
        "451 Deferred due to greylisting. Host: '192.0.2.1' From: 'a@sender.example'",  # cPanel
        "450 4.3.2 Service currently unavailable",  # postscreen
        "451 Internal resources are temporarily unavailable - https://community.mimecast.com/docs/DOC-1369#451 [Aj3QXapeMpqZYaeFwWhjzw.us32]",
        "451 Temporary failure, please try again later.",  # spamd(8)
        "421 4.7.1 Service unavailable; Client host [192.0.2.1] blocked using grey.rbl - Greylisting in action, please try again later",
    ],
    "blocked": [
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3150).",
        "550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/",
        "550 5.7.511 Access denied, banned sender[192.0.2.1]. To request removal from this list please forward this message to delist@messaging.microsoft.com.",
        "550 SC-001 (BAY004-MC1F10) Unfortunately, messages from 192.0.2.1 weren't sent.",
        "421 4.7.0 This message is suspicious due to the very low reputation of the sending IP address.",  # Gmail
        "550 5.7.1 Our system has detected that this message is likely suspicious due to the very low reputation of the sending domain.",
        "421 4.7.0 IP not in whitelist for RCPT domain, closing connection.",
        "421 4.7.1 [TSS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.",
        "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list; see https://help.yahoo.com",
        "554-gmx.net (mxgmx104) Nemesis ESMTP Service not available\r\n554-No SMTP service\r\n554-IP address is block listed.\r\n554 For explanation visit https://postmaster.gmx.net/en/case?c=r0201&i=ip&v=192.0.2.1",
        "421-web.de (mxweb112) Nemesis ESMTP Service not available\r\n421-Service unavailable\r\n421 Reject due to policy restrictions",
        "554 IP=192.0.2.1 - A problem occurred. (Ask your postmaster for help or to contact tosa@rx.t-online.de to clarify.)",
        "554 IP=192.0.2.1 - None/bad reputation. Ask your postmaster for help or to contact tosa@rx.t-online.de for reset. (NOWL)",
        "421 mwinf5c22 ME Service refuse. Veuillez essayer plus tard. Service refused, please try later. OFR_999 [999]",
        "550 mwinf5c04 ME Adresse IP source bloquee pour incident de spam. Client host blocked for spamming issues. OFR006_102",
        "450 4.7.1 SFR_IN_101 Service refused due to bad behavior",
        "421 4.7.1 too many spams from your ip (192.0.2.1), please visit http://postmaster.free.fr/",
        "554 resimta-po-11v.sys.comcast.net 192.0.2.1 found on one or more DNSBLs, see http://postmaster.comcast.net/smtp-error-codes.php#BL000010",
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.1",
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using Barracuda Reputation; http://www.barracudanetworks.com/reputation/?r=1&ip=192.0.2.1",
        "550 5.2.1 Mailbox unavailable. Your IP address 192.0.2.1 is blacklisted using SPAMHAUS-XBL.",
        "554 Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1",
        "550 5.7.0 Blocked - see https://support.proofpoint.com/dnsbl-lookup.cgi?ip=192.0.2.1",
        "550 csi.mimecast.org Poor Reputation Sender. - https://community.mimecast.com/docs/DOC-1369#550",
        "451 IP temporarily blacklisted - https://community.mimecast.com/docs/DOC-1369#451",
        "554 mx.example.com Your access to this mail system has been rejected due to the sending MTA's poor reputation.",  # Cisco
        "554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied",  # Postfix
        "550 We do not accept mail from hosts with dynamic IP or generic DNS, blacklisted",
        "521 5.2.1 : (RTR:BL) AOL will not accept delivery of this message",
    ],
    "spam": [
        "550-5.7.1 Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail,\r\n550 5.7.1 this message has been blocked.",
        "552 5.7.0 This message was blocked because its content presents a potential security issue.",
        "550 spam message rejected. Please visit http://help.mail.ru/notspam-support/id?c=abc or report details to abuse@corp.mail.ru.",
        "554 5.7.1 [2] Message rejected under suspicion of SPAM; https://ya.cc/1IrBc 1417451517-fJqs3Lq0aA",
        "550 5.7.1 [CS01] Message rejected due to local policy. Please visit https://support.apple.com/en-us/HT204137",
        "554 5.7.1 Your message was rejected due to having a domain present in the Spamhaus DBL -- see https://www.spamhaus.org/dbl/",
        "554 Message not allowed - [PH01] Email not accepted for policy reasons.",
        "550 5.7.0 Local Policy Violation",  # Proofpoint
        "554 Email rejected due to security policies - https://community.mimecast.com/docs/DOC-1369#554",
        "550 <b@web.de>: Reject due to policy restrictions",
        "554 5.7.1 Message scored as spam",
        "571 5.7.1 message classified as spam (Nachricht als Spam eingestuft)",
        "550 message has been rejected due to spam or virus classification",  # T-Online
        "550 mwinf5c10 ME Mail rejete. Mail rejected. OFR_506 [506]",
        "554 5.6.0 rejected due to virus",
    ],
    "policy": [
        "550 5.7.26 This mail has been blocked because the sender is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM.",
        "421-4.7.26 This mail has been rate limited because it is unauthenticated. Gmail requires all\r\n421 4.7.26 senders to authenticate with either SPF or DKIM.",
        "550 5.7.26 Unauthenticated email from sender.example is not accepted due to domain's DMARC policy.",
        "550 5.7.25 The IP address sending this message does not have a PTR record setup, or the corresponding forward DNS entry does not point to the sending IP.",
        "550 5.7.515 Access denied, sending domain sender.example doesn't meet the required authentication level. DMARC",
        "550 5.7.509 Access denied, sending domain sender.example does not pass DMARC verification and has a DMARC policy of reject.",
        "550 5.7.23 The message was rejected because of Sender Policy Framework violation",
        "550 <a@sender.example>: Reject due to SPF policy. The originating IP of the message is not permitted by the domain owner",
        "550 5.7.1 Your message was rejected due to sender.example DMARC policy.",  # Apple
        "554 5.7.9 Message not accepted for policy reasons due to DMARC. See https://postmaster.yahooinc.com/error-codes",
        "450 4.7.1 Client host rejected: cannot find your reverse hostname, [192.0.2.1]",  # Postfix
        "450 4.7.1 Client host 192.0.2.1 has no PTR record (G1F)",
        "421 [Reverse DNS failure : Try again later]",  # Comcast
        "554 5.7.1 <b@other.example>: Relay access denied",
        "550 relay not permitted",  # Exim
        "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
        "550 5.7.1 <b@other.example>... Relaying denied",  # Sendmail
        "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",  # qmail
        "450 4.1.8 <a@sender.example>: Sender address rejected: Domain not found",
        "553 5.1.8 <a@sender.example>... Domain of sender address a@sender.example does not exist",
        "550 Rejected by header based Anti-Spoofing policy: a@sender.example - https://community.mimecast.com/docs/DOC-1369#550",
        "550 Sender verify failed",
    ],
    "mailbox_full": [
        "452-4.2.2 The recipient's inbox is out of storage space. Please direct the recipient to\r\n452 4.2.2 https://support.google.com/mail/?p=OverQuotaTemp",
        "552 5.2.2 The email account that you tried to reach is over quota.",
        "552 5.1.1 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]",
        "552 1 Requested mail action aborted, mailbox not found: exceeded storage allocation Quota exceeded",
        "550 5.2.2 <b@peer.example> Quota exceeded (mailbox for user is full)",  # Dovecot
        "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded",
        "452 4.1.1 <b@icloud.com> user is over quota",
        "452 4.2.2 Mailbox full",
        "552 Requested mail action aborted: exceeded storage allocation",
        "422 4.2.2 x",
    ],
    "no_mailbox": [
        "550-5.1.1 The email account that you tried to reach does not exist. Please try\r\n550-5.1.1 double-checking the recipient's email address for typos or\r\n550 5.1.1 unnecessary spaces.",
        "550 5.2.1 The email account that you tried to reach is disabled.",
        "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).",  # Outlook.com
        "550 5.4.1 Recipient address rejected: Access denied. [AM7EUR06FT004.eop-eur06.prod.protection.outlook.com]",
        "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
        "554 delivery error: dd This user doesn't have a yahoo.com account (b@yahoo.com) [0]",
        "554 30 Sorry, your message to b@aol.com cannot be delivered. This mailbox is disabled (554.30).",
        "550 <b@gmx.net>: Requested action not taken: mailbox unavailable",
        "550 5.1.1 <b@icloud.com>: user does not exist",
        "550 Message was not accepted -- invalid mailbox. Local mailbox b@mail.ru is unavailable: user not found",
        "550 5.7.1 No such user!",  # Yandex
        "550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. OFR_416 [416]",
        "550 5.1.1 Not our Customer",  # Comcast
        "550 5.1.1 <b@peer.example>: Recipient address rejected: User unknown in local recipient table",
        "550 Unrouteable address",
        "550 5.1.1 <b@peer.example>... User unknown",
        "550 sorry, no mailbox here by that name. (#5.1.1)",
        "550 #5.1.0 Address rejected.",
        "550 Invalid Recipient - https://community.mimecast.com/docs/DOC-1369#550",
        "550 permanent failure (#5.1.1)",
        "551 x",
    ],
    "bad_domain": [
        "556 5.1.10 Recipient address has a null MX",
        "450 4.1.2 <b@nowhere.example>: Recipient address rejected: Domain not found",
        "550 5.4.4 SMTPSEND.DNS.NonExistentDomain; nonexistent domain",
        "521 mail.example does not accept mail",
        "554 5.4.6 mail for peer.example loops back to myself",
        "550 5.1.2 x",
    ],
    "too_large": [
        "552 5.3.4 Your message exceeded Google's message size limits.",
        "552 5.3.4 Message size exceeds fixed maximum message size",
        "554 Maximum email size exceeded - https://community.mimecast.com/docs/DOC-1369#554",
        "552 Message too large",
        "550 5.2.3 RESOLVER.RST.RecipSizeLimit; message too large for this recipient",
    ],
    "tls": [
        "421 4.7.0 TLS required for RCPT domain, closing connection.",
        "421 4.7.29 This email has been rate limited. Gmail requires all senders to use TLS/SSL for SMTP",
        "530 5.7.0 Must issue a STARTTLS command first",
        "454 4.7.0 TLS not available due to local problem",
        "550 5.7.10 Encryption needed",
        "553 This route requires encryption (TLS)",
    ],
    "credentials": [
        "530 5.7.0 Authentication Required. For more information, go to https://support.google.com/mail/?p=WantAuthError",
        "535 5.7.8 Username and Password not accepted.",
        "530 5.7.57 Client not authenticated to send mail.",
        "535 Incorrect authentication data",
        "550 Please turn on SMTP Authentication in your mail client.",
        "535 x",
    ],
    "dns": ["451 4.4.3 Temporary server error. Please try again later", "451 DNS lookup failure"],
    "connection": ["451 4.4.2 Timeout - closing connection.", "421 4.4.2 mx.example Error: timeout exceeded"],
    "capability": [
        "451 4.3.0 Multiple destination domains per transaction is unsupported. Please try again.",
        "502 5.5.2 Error: command not recognized",
        "555 5.5.4 Unsupported option: SMTPUTF8",
        "504 x",
    ],
    "other": [
        "452 4.5.3 Too many recipients",
        "452 4.5.3 Your message has too many recipients.",
        "452 4.3.1 Insufficient system storage",
        "452 4.3.1 Insufficient system resources (UsedDiskSpace[C:\\Program Files])",
        "451 4.3.0 Mail server temporarily rejected message.",
        "421 4.3.2 Service not available, closing transmission channel",
        "451 4.3.5 Server configuration error",
        "450 x",
        "554",
    ],
}

CASES = [(Category(name), said) for name, replies in SAID.items() for said in replies]


def of(said):
    (answer,) = ReplyParser().feed(said.encode() + b"\r\n")
    return answer


@pytest.mark.parametrize(("expected", "said"), CASES, ids=lambda value: str(value)[:60])
def test_what_providers_say(expected, said):
    assert category(None, of(said)) is expected


def test_there_are_enough_of_them():
    assert len(CASES) >= 150
    assert {expected for expected, _ in CASES} == set(Category)


OWN = [
    (reply.unreachable("mx.spam.greylist.example[192.0.2.1]:25", "too many connections"), "connection"),
    (reply.interrupted("mx.example[192.0.2.1]:25", "greylisted by peer", "MAIL"), "connection"),
    (reply.unresolved("rate limit"), "dns"),
    (reply.DOMAIN_NOT_FOUND, "bad_domain"),
    (reply.NULL_MX, "bad_domain"),
    (reply.NO_VALID_MX, "bad_domain"),
    (reply.LOOPS_BACK, "bad_domain"),
    (reply.HOST_NOT_FOUND, "bad_domain"),
    (reply.NO_ADDRESS, "bad_domain"),
    (reply.NO_ADDRESS_YET, "dns"),
    (reply.TOO_LARGE_THERE, "too_large"),
    (reply.NO_SMTPUTF8_THERE, "capability"),
    (reply.INTERNAL_ERROR, "other"),
    (reply.LOCAL_TROUBLE, "other"),
    (reply.NO_DOMAIN, "other"),
    (reply.SHUTTING_DOWN, "other"),
]


@pytest.mark.parametrize(("composed", "expected"), OWN, ids=lambda value: str(value)[:40])
def test_what_relayd_composes_itself(composed, expected):
    assert category(None, composed) is Category(expected)


AT = [
    (Stage.RCPT, "550 no", "no_mailbox"),
    (Stage.DOT, "550 no", "other"),
    (None, "550 no", "other"),
    (Stage.GREETING, "554 go somewhere else", "blocked"),
    (Stage.DOT, "554 go somewhere else", "other"),
    (Stage.STARTTLS, "454 4.3.0 try later", "tls"),
    (Stage.LOGIN, "454 4.7.0 try later", "credentials"),
]


@pytest.mark.parametrize(("stage", "said", "expected"), AT)
def test_where_it_was_said_helps_where_words_are_missing(stage, said, expected):
    assert category(stage, of(said)) is Category(expected)


def test_words_of_recipients_are_not_the_peers():
    said = (
        '550 5.1.1 <"too many connections greylisted spamhaus"@peer.example>: Recipient address rejected: User unknown'
    )
    assert category(None, of(said)) is Category.NO_MAILBOX
    assert category(Stage.RCPT, of("450 4.2.0 <rate-limit.exceeded@peer.example>: busy")) is Category.OTHER


def test_an_address_of_a_network_is_no_enhanced_code():
    assert category(None, of("550 no thanks 5.1.1.9")) is Category.OTHER
    assert category(None, of("450 later, 5.1.1")) is Category.OTHER


@given(st.sampled_from([None, *Stage]), st.integers(200, 599), st.text(st.characters(), max_size=2000))
def test_any_reply_has_a_category_and_an_effect(stage, code, text):
    answer = Reply(code, "", text)
    assert isinstance(effect(category(stage, answer), stage, answer), Effect)


# --- effects


@pytest.mark.parametrize(
    ("stage", "said", "expected"),
    [
        (Stage.GREETING, "421 4.7.0 Error: too many connections from 192.0.2.1", Effect.CONNECTIONS),
        (Stage.RCPT, "550 Too many SMTP sessions for this host", Effect.CONNECTIONS),
        (Stage.GREETING, "421 mx.example", Effect.CONNECTIONS),
        (Stage.GREETING, "421 4.3.2 Service not available, closing transmission channel", Effect.CONNECTIONS),
        (Stage.MAIL, "421 4.3.2 Service not available, closing transmission channel", Effect.NONE),
        (Stage.GREETING, "450 later", Effect.NONE),
        (Stage.MAIL, "421 4.7.28 unusual rate of unsolicited mail", Effect.RATE),
        (Stage.DOT, "550 5.7.28 unusual rate of unsolicited mail", Effect.RATE),
        (Stage.RCPT, "450 4.2.1 The user you are trying to contact is receiving mail too quickly", Effect.NONE),
        (Stage.GREETING, "421 4.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org", Effect.RATE),
        (Stage.RCPT, "554 5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org", Effect.NONE),
        (Stage.RCPT, "451 4.7.1 try later", Effect.RATE),
        (Stage.DOT, "451 4.7.1 looks like spam", Effect.RATE),
        (Stage.DOT, "550 5.7.1 looks like spam", Effect.NONE),
        (Stage.RCPT, "450 4.7.1 Greylisted", Effect.NONE),
        (Stage.RCPT, "450 4.7.1 Client host rejected: cannot find your reverse hostname", Effect.NONE),
        (Stage.MAIL, "421 4.7.0 TLS required for RCPT domain", Effect.NONE),
        (Stage.LOGIN, "454 4.7.0 Temporary authentication failure", Effect.NONE),
        (Stage.RCPT, "450 4.7.1 user unknown", Effect.NONE),
        (Stage.MAIL, "421 Max message per connection reached", Effect.SESSION),
        (Stage.RCPT, "452 4.5.3 Too many recipients", Effect.NONE),
        (Stage.RCPT, "452 4.2.2 Mailbox full", Effect.NONE),
        (Stage.DOT, "451 4.3.0 later", Effect.NONE),
        (None, "451 4.3.0 later", Effect.NONE),
    ],
)
def test_what_the_scheduler_should_learn(stage, said, expected):
    answer = of(said)
    assert effect(category(stage, answer), stage, answer) is expected


# --- the table


def test_the_metric_knows_the_categories():
    assert list(metrics.CATEGORIES) == [member.value for member in Category]


ROWS = (*patterns._TABLE.patterns, *patterns._TABLE.fallbacks)


def test_every_category_but_other_has_a_row():
    assert {row.category for row in ROWS} == set(Category) - {Category.OTHER}


def test_every_row_is_the_first_for_some_reply():
    """A row that nothing reaches is a mistake, or lacks its case above."""
    cases = [(None, of(said)) for _, said in CASES] + [(None, composed) for composed, _ in OWN]
    cases += [(stage, of(said)) for stage, said, _ in AT]
    cases += [(None, Reply(550, status, "")) for status in ("5.1.7", "5.7.28", "5.7.30", "5.7.4", "5.7.22", "5.7.1")]
    cases += [(None, Reply(550, status, "")) for status in ("5.4.5", "5.6.1", "5.2.3", "5.7.10")]
    cases += [(None, Reply(code, "", "")) for code in (521, 504, 553)]
    cases += [
        (None, of(said)) for said in ("421 RP-003", "454 try again in 5 minutes", "451 4.5.0 transactions per session")
    ]
    reached = {id(_first(stage, answer)) for stage, answer in cases}
    assert [row for row in ROWS if id(row) not in reached] == []


def _first(stage, answer):
    said = patterns._said(reply.shortened(answer))
    return next((row for row in ROWS if row.fits(said, stage)), None)


HOSTILE = [
    "a",
    " ",
    "<",
    "1.",
    "ip ",
    "too many ",
    "message ",
    "rejected ip ",
    "url ",
    "sender ",
    "content ",
    "\u0130",
    "0:",
]


@pytest.mark.parametrize("row", patterns._TABLE.patterns, ids=lambda row: row.category.value)
def test_no_row_takes_long_over_hostile_text(row):
    """A kilobyte, more than is searched, of the very words of the row. Milliseconds; backtracking would take for ever."""
    text = row.text or re.compile("")
    words = [word + " " for word in re.findall(r"[a-z]{2,}", text.pattern)]
    for piece in HOSTILE + words:
        hostile = (piece * 1024)[:1024]
        assert min(_seconds(text, hostile) for _ in range(3)) < 0.02, (text.pattern, piece)


def _seconds(text, hostile):
    started = time.process_time()
    text.search(hostile)
    return time.process_time() - started


def test_a_reply_that_is_known_is_not_looked_at_again():
    category(None, of("550 5.1.1 no such user, remembered"))
    hits = patterns._worded.cache_info().hits
    assert category(Stage.RCPT, of("550 5.1.1 no such user, remembered")) is Category.NO_MAILBOX
    assert patterns._worded.cache_info().hits == hits + 1


def test_what_is_remembered_is_bounded_in_number_and_length():
    """A peer may say anything, up to 32 KiB a time."""
    for number in range(1100):
        category(None, Reply(550, "", f"{number} " + "x" * 30_000))
    first = Reply(550, "", "lines\n" + "y" * 30_000)
    category(None, first)
    hits, size = patterns._worded.cache_info().hits, patterns._worded.cache_info().currsize
    category(Stage.RCPT, reply.shortened(first))
    assert patterns._worded.cache_info().hits == hits + 1
    assert size == patterns._worded.cache_info().maxsize == 1024


def test_the_file_is_part_of_the_package():
    assert importlib.resources.files("relayd.outbound").joinpath("patterns.toml").is_file()


GOOD = '[[pattern]]\ncategory = "rate"\ntext = "slow down"\nsource = "here"\n'


def test_a_good_table():
    table = load(GOOD + '[[fallback]]\ncategory = "tls"\ncodes = ["4xx"]\nsource = "s"\n')
    (pattern,), (fallback,) = table.patterns, table.fallbacks
    assert pattern.fits(patterns._said(of("450 Please slow down")))
    assert not pattern.fits(patterns._said(of("450 Please go away")))
    assert fallback.fits(patterns._said(of("450 x")))
    assert not fallback.fits(patterns._said(of("550 x")))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("[[pattern]\n", "not TOML"),
        ("[[patterns]]\n", "unknown table patterns"),
        ('pattern = "x"\n', "pattern is no list"),
        ("pattern = [1]\n", "pattern 1: "),
        (GOOD + GOOD.replace('"rate"', '"speed"'), "pattern 2: .*speed"),
        (GOOD + GOOD.replace("source", "sauce"), "pattern 2: "),
        (GOOD + GOOD.replace('"here"', '""'), "pattern 2: no source"),
        (GOOD + GOOD.replace("slow down", "slow (down"), "pattern 2: "),
        (GOOD + GOOD.replace("slow down", "slow.*down"), "pattern 2: text"),
        (GOOD + GOOD.replace("slow down", "slow +down"), "pattern 2: text"),
        (GOOD + GOOD.replace("slow down", "(slow){2,}down"), "pattern 2: text"),
        (GOOD + GOOD.replace("slow down", "(?=slow)"), "pattern 2: text"),
        (GOOD + GOOD.replace("slow down", "Slow down"), "pattern 2: text"),
        (GOOD + GOOD.replace("slow down", "x" * 701), "pattern 2: text"),
        (GOOD + GOOD.replace('text = "slow down"', ""), "pattern 2: a pattern has"),
        (GOOD + GOOD.replace('text = "slow down"', 'codes = ["421"]'), "pattern 2: a pattern has"),
        (GOOD + GOOD + 'codes = ["42"]\n', "pattern 2: '42' is no code"),
        (GOOD + GOOD + 'codes = ["250"]\n', "pattern 2: '250' is no code"),
        (GOOD + GOOD + 'codes = "421"\n', "pattern 2: "),
        (GOOD + GOOD + 'enhanced = ["4"]\n', "pattern 2: '4' is no enhanced code"),
        (GOOD + GOOD + 'stages = ["dot"]\n', "pattern 2: a pattern has"),
        ('[[fallback]]\ncategory = "tls"\nsource = "s"\nstages = ["dots"]\n', "fallback 1: 'dots' is no stage"),
        (GOOD + '[[fallback]]\ncategory = "tls"\nsource = "s"\n', "fallback 1: a fallback has"),
        (GOOD + GOOD.replace("pattern", "fallback"), "fallback 1: a fallback has"),
    ],
)
def test_a_malformed_table_names_the_row(broken, message):
    with pytest.raises(PatternError, match=message):
        load(broken)
