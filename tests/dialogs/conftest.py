"""Dialogs run on both event loops."""

from tests.integration.inbound.conftest import certificate, pytest_asyncio_loop_factories

__all__ = ["certificate", "pytest_asyncio_loop_factories"]
