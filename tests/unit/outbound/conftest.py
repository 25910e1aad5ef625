import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    """asyncio's own loop; processes are started on uvloop, too, as served."""
    loops = {"asyncio": asyncio.new_event_loop}
    if item.path.name == "test_credentials.py":
        loops["uvloop"] = uvloop.new_event_loop
    return loops
