"""Start Python programs that use stkai in a hundredth of a second, as forks of a process that has imported it."""

import atexit
import ctypes
import gc
import inspect
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import threading
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

_PR_SET_CHILD_SUBREAPER = 36
_ENDS = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_MOST = 200_000
"""Bytes of a message."""


class Forked(subprocess.Popen[Any]):
    """As `subprocess.Popen` of `python -m MODULE ...` or `python -c PROGRAM ...`, with all that this offers.

    What is imported, which a test of imports must not use, is the only difference. Takes no `preexec_fn` and no file
    descriptors but the streams. Where there is no Linux, an ordinary start.
    """

    def _execute_child(self, *args: Any) -> None:
        start: Any = super()._execute_child  # type: ignore[misc]
        if sys.platform != "linux":
            start(*args)
            return
        given = inspect.signature(start).bind(*args).arguments
        assert given["preexec_fn"] is None
        program = {
            "arguments": list(map(os.fspath, given["args"]))[1:],
            "folder": os.fspath(given["cwd"] or Path.cwd()),
            "environment": dict(os.environ if given["env"] is None else given["env"]),
        }
        ends = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        streams = [stream if end == -1 else end for stream, end in enumerate(ends)]
        template = _template()
        # The child of whoever ends becomes a child of this process.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(template, [json.dumps(program).encode()], streams)
            self.pid = int(template.recv(_MOST))
        finally:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)
        self._child_created = True
        close: Any = self._close_pipe_fds  # type: ignore[attr-defined]
        close(*(given[name] for name in _ENDS))


def forkserver(_: str) -> Any:
    """In place of `multiprocessing.get_context` for "spawn": its children, too, are forks."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["stkai._cli.demo", "benchmarks.adaptive.crowd", "benchmarks._spoiler"])
    return context


@cache
def _template() -> socket.socket:
    """The way to the process that is forked: one for this process and its tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _serve(channel: socket.socket) -> list[str]:
    """Fork for each message; return in the children only, with the arguments of their programs."""
    while True:
        message, streams, _, _ = socket.recv_fds(channel, _MOST, 3)
        if not message:
            os._exit(0)
        reading, writing = os.pipe()
        parent = os.fork()
        if parent == 0:
            child = os.fork()
            if child == 0:
                return _become(json.loads(message), streams)
            os.write(writing, b"%d" % child)
            os._exit(0)
        os.waitpid(parent, 0)
        channel.send(os.read(reading, _MOST))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def _become(program: dict[str, Any], streams: list[int]) -> list[str]:
    """Be a process of its own."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 1024)
    os.chdir(program["folder"])
    os.environ.clear()
    os.environ.update(program["environment"])
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    arguments: list[str] = program["arguments"]
    return arguments


def main() -> None:
    """Import everything, and wait for programs to run."""
    import stkai

    for module in pkgutil.walk_packages(stkai.__path__, "stkai."):
        if module.name not in {"stkai.__main__", "stkai.testing.pytest"}:
            import_module(module.name)
    gc.freeze()
    option, program, *arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        if option == "-m":
            sys.argv = [program, *arguments]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [option, *arguments]
            exec(program, {"__name__": "__main__"})  # noqa: S102
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        _end(end.code or 0)
    _end(0)


def _end(code: int) -> None:
    """End as Python does, but leave all that was imported to the system: to free it takes 0.2 s."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
