"""Which event loop runs a task."""

import asyncio
import sys
from types import ModuleType

import pytest

from stkai._event_loops import asyncio_loop, running_loop


def test_a_trio_that_another_thread_is_importing_runs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "trio", ModuleType("trio"))
            found = running_loop(), asyncio_loop()
        assert found == (asyncio.get_running_loop(),) * 2

    asyncio.run(run())
