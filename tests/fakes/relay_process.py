"""A real `relayd serve`: a process of its own on free loopback ports, which a test may stop, kill and start again."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import trustme

HOST = "127.0.0.1"
HOSTNAME = "relay.test"
KINDS = ("submission", "submissions", "relay")


_PORTS = itertools.cycle(random.Random(os.getpid()).sample(range(12_000, 32_000), 20_000))
"""Below those the kernel gives to clients, so that no connection takes one before its listener does, or between two
lives of it; each process of the tests in an order of its own."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on just now, all different."""
    return list(itertools.islice(filter(_is_free, _PORTS), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


class RelayProcess:
    """relayd over `directory`: three listeners, loopback trusted, all mail to `next_hops` unless `routes` say more.

    ports: by kind of listener, and "admin". ca: PEM file of the authority that signed the certificate.
    limits, delivery: lines of these tables. extra: further tables, those not written here. workers: processes that serve.
    """

    def __init__(
        self,
        directory: Path,
        next_hops: Sequence[int] = (),
        *,
        routes: Mapping[str, Sequence[int]] | None = None,
        retry_schedule: Sequence[str] = ("1s",),
        limits: str = 'disk_reserve = "16MB"',
        delivery: str = "",
        extra: str = "",
        workers: int = 1,
    ) -> None:
        self.directory = directory
        self.configuration = directory / "relayd.toml"
        self.ca = directory / "ca.pem"
        self.ports = dict(zip((*KINDS, "admin"), free_ports(len(KINDS) + 1), strict=True))
        self.process: subprocess.Popen[bytes] | None = None
        self._certify()
        by_domain = {**(routes or {}), **({"*": next_hops} if next_hops else {})}
        self.configuration.write_text(self._text(by_domain, retry_schedule, limits, delivery, workers) + extra, encoding="utf-8")

    def _certify(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        issued = authority.issue_cert(HOST, HOSTNAME, "localhost")
        issued.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        (self.directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def _text(
        self,
        routes: Mapping[str, Sequence[int]],
        retry_schedule: Sequence[str],
        limits: str,
        delivery: str,
        workers: int,
    ) -> str:
        listeners = "".join(
            f'[[listeners]]\nbind = "{HOST}:{self.ports[kind]}"\nkind = "{kind}"\n' for kind in KINDS
        )
        by_domain = "".join(
            f"[[routes]]\ndomains = {json.dumps([domain])}\n"
            f"next_hops = {json.dumps([f'{HOST}:{port}' for port in ports])}\n"
            for domain, ports in routes.items()
        )
        return (
            f'hostname = "{HOSTNAME}"\nworkers = {workers}\n'
            '[tls]\ncertificate = "cert.pem"\nprivate_key = "key.pem"\n'
            '[relay]\ntrusted_networks = ["127.0.0.0/8"]\n'
            f"[limits]\n{limits}\n"
            f"[delivery]\nretry_schedule = {json.dumps(list(retry_schedule))}\n{delivery}\n"
            f'[admin]\nbind = "{HOST}:{self.ports["admin"]}"\n'
            '[log]\nfile = "events.log"\n' + listeners + by_domain
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.process is None:
            return
        status = await self.stop()
        if kind is None:
            assert status == 0, f"relayd ended with {status}:\n{self.log()}"

    async def start(self, seconds: float = 30.0) -> None:
        """Start, and return when /readyz says so."""
        self.launch()
        assert await self.ready(seconds), f"relayd ended:\n{self.log()}"

    def launch(self, *tracer: str) -> None:
        """Start, and do not wait for anything. tracer: a command that runs the one it is given."""
        with (self.directory / "output.log").open("ab") as output:
            command = [*tracer, *self._command("serve")]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())

    async def ready(self, seconds: float = 30.0) -> bool:
        """Return when /readyz says so, True, or when the process has ended, False."""
        deadline = time.monotonic() + seconds
        while not await self._is_ready():
            if self.process is None or self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"not ready within {seconds} s:\n{self.log()}"
            await asyncio.sleep(0.02)
        return True

    async def stop(self, seconds: float = 35.0) -> int:
        """SIGTERM; the exit status."""
        return await self._end(signal.SIGTERM, seconds)

    async def kill(self) -> None:
        """SIGKILL: what a crash is to the process."""
        await self._end(signal.SIGKILL, 10)

    async def _end(self, number: signal.Signals, seconds: float) -> int:
        process, self.process = self.process, None
        assert process is not None, "not running"
        process.send_signal(number)
        try:
            return await asyncio.to_thread(process.wait, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    async def _is_ready(self) -> bool:
        try:
            await self.get("/readyz")
        except OSError:
            return False
        return True

    async def get(self, path: str) -> str:
        """The text of the admin port's answer; OSError when refused or not 2xx."""
        url = f"http://{HOST}:{self.ports['admin']}{path}"
        return await asyncio.to_thread(_read, url)

    async def metrics(self) -> dict[str, float]:
        """Every sample by name and labels, as it is written: 'relayd_deliveries_total{result="delivered"}'."""
        lines = (line for line in (await self.get("/metrics")).splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def emptied(self, seconds: float = 60.0) -> None:
        """Return when no message is queued."""
        deadline = time.monotonic() + seconds
        while queued := await self.queued():
            assert time.monotonic() < deadline, f"{queued} messages queued after {seconds} s"
            await asyncio.sleep(0.05)

    async def queued(self) -> int:
        """Messages in the queue, in any state."""
        samples = await self.metrics()
        return int(sum(value for name, value in samples.items() if name.startswith("relayd_queue_messages{")))

    def add_user(self, name: str, password: str) -> None:
        """As an operator does, through the command line."""
        command = self._command("user", "add", name, "--password-stdin")
        subprocess.run(command, input=password.encode() + b"\n", check=True, env=environment(), capture_output=True)

    def client_context(self) -> ssl.SSLContext:
        """TLS that trusts this relay's certificate and no other."""
        return ssl.create_default_context(cafile=self.ca)

    def log(self, lines: int = 30) -> str:
        """The last lines of output and events."""
        files = (self.directory / name for name in ("output.log", "events.log"))
        text = [line for file in files if file.exists() for line in file.read_text("utf-8", "replace").splitlines()]
        return "\n".join(text[-lines:])

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "relayd", *arguments, "--config", str(self.configuration)]


def environment() -> dict[str, str]:
    """Ours, less variables that would configure another relay."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        text: str = response.read().decode()
        return text
