"""Which event loop runs a task."""

import asyncio
import errno
import sys
from types import ModuleType

import pytest
import trio

from stkai._event_loops import asyncio_loop, run_soon, running_loop


def test_a_trio_that_another_thread_is_importing_runs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "trio", ModuleType("trio"))
            found = running_loop(), asyncio_loop()
        assert found == (asyncio.get_running_loop(),) * 2

    asyncio.run(run())


def test_asyncio_is_found_beside_a_trio_from_before_2024(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio.lowlevel, "in_trio_run")

    async def find() -> object:
        return asyncio_loop()

    assert isinstance(asyncio.run(find()), asyncio.AbstractEventLoop)
    assert trio.run(find) is None


def test_a_loop_that_was_broken_off_is_not_woken_and_disturbs_no_other() -> None:
    """A trio run that ends like this (an exception inside trio, a guest whose host has ended) counts as running."""

    class Abandoned:
        def run_sync_soon(self, *_: object) -> None:
            raise OSError(errno.EBADF, "Bad file descriptor")

    run_soon(Abandoned(), print)
