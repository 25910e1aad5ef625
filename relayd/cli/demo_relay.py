"""The demo's relay: `relayd serve` with a worker for each CPU, over a scratch directory, on free loopback ports.

Owns the configuration, the certificate, the user and the process. Called by `demo`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from relayd.cli.certificate import self_signed
from relayd.cli.demo_hosts import free_port

_PATIENCE = 30.0
"""Seconds until the relay is ready, and again until it has ended."""


class DemoError(Exception):
    """The demonstration cannot go on."""


class Relay:
    """A running relay. submission: host:port; admin: URL; routes: ports of the next hops, by domain."""

    user = "demo"

    def __init__(self, directory: Path, routes: Mapping[str, tuple[int, ...]], password: str) -> None:
        self.password = password
        self.submission = f"127.0.0.1:{free_port()}"
        self.admin = f"http://127.0.0.1:{free_port()}"
        self.certificate = directory / "cert.pem"
        self._directory = directory
        self._configuration = directory / "relayd.toml"
        self._routes = routes
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._prepare()
        await self._add_user()
        self._process = await self._start("serve")
        try:
            await self._ready(self._process)
        except BaseException:
            await self._stop(self._process)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        status = await self._stop(self._process) if self._process else 0
        if status != 0 and kind is None:
            raise DemoError(f"the relay ended with status {status}:\n{self._log()}")

    async def queued(self) -> int:
        """Messages in the queue, notifications included."""
        text = await asyncio.to_thread(self._get, "/metrics")
        lines = (line for line in text.splitlines() if line.startswith("relayd_queue_messages{"))
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)

    def _prepare(self) -> None:
        certificate, key = self_signed("relay.demo.example")
        self.certificate.write_bytes(certificate)
        (self._directory / "key.pem").write_bytes(key)
        self._configuration.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        routes = "".join(
            f"[[routes]]\ndomains = {json.dumps([domain])}\n"
            f"next_hops = {json.dumps([f'127.0.0.1:{port}' for port in ports])}\n"
            for domain, ports in self._routes.items()
        )
        return (
            'hostname = "relay.demo.example"\n'
            '[tls]\ncertificate = "cert.pem"\nprivate_key = "key.pem"\n'
            f'[[listeners]]\nbind = "{self.submission}"\nkind = "submission"\n'
            '[limits]\ndisk_reserve = "16MB"\n'
            '[delivery]\nretry_schedule = ["1s", "2s", "5s", "10s"]\n'
            f'[admin]\nbind = "{self.admin.removeprefix("http://")}"\n'
            '[log]\nfile = "events.log"\n' + routes
        )

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Run a relayd command of this very installation, deaf to RELAYD_ variables meant for another relay."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}
        with (self._directory / "output.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "relayd", *arguments, "--config", str(self._configuration),
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output, env=environment,
            )  # fmt: skip

    async def _add_user(self) -> None:
        process = await self._start("user", "add", self.user, "--password-stdin")
        await process.communicate(self.password.encode() + b"\n")
        if process.returncode != 0:
            raise DemoError(f"the user could not be added:\n{self._log()}")

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _PATIENCE
        while process.returncode is None and time.monotonic() < deadline:
            try:
                await asyncio.to_thread(self._get, "/readyz")
            except OSError:  # refused, or 503: not yet
                await asyncio.sleep(0.05)
            else:
                return
        raise DemoError(f"the relay did not become ready:\n{self._log()}")

    async def _stop(self, process: asyncio.subprocess.Process) -> int:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(process.wait(), _PATIENCE)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise DemoError("the relay did not end within 30 s of SIGTERM") from error

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.admin + path, timeout=5) as response:  # noqa: S310  # our own http address
            text: str = response.read().decode()
            return text

    def _log(self) -> str:
        """The last lines of what the relay said."""
        files = (self._directory / name for name in ("output.log", "events.log"))
        lines = [line for file in files if file.exists() for line in file.read_text("utf-8", "replace").splitlines()]
        return "\n".join(lines[-15:])
