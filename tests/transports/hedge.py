"""A custom layer that hedges: if no answer comes, it sends a second attempt and takes the first answer."""

from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextvars import copy_context
from typing import Any

import anyio
import httpx

from stkai.transports import Attempt, Flow, Layer, LayerTransport, Run, adrive, can_resend, drive

Won = tuple[Attempt, httpx.Response]
THREADS = ThreadPoolExecutor(64)


def hedge(delay: float = 0.05) -> Layer:
    """Send the request once more after `delay` seconds; an error counts only if no answer comes."""

    def flow(layer: LayerTransport, request: httpx.Request, attempt: Attempt) -> Flow:
        def run(which: Attempt) -> tuple[Any, ...]:
            return layer.forward(request, which), which, layer.context.clock

        def race(_: float) -> Won:
            runs = {THREADS.submit(copy_context().run, drive, *run(first)): first}
            winner: Future[httpx.Response] | None = None
            try:
                if not wait(runs, delay).done:
                    other = attempt.beside()
                    runs[THREADS.submit(copy_context().run, drive, *run(other))] = other
                winner = next((ended for ended in as_completed(runs) if not ended.exception()), None)
                return (runs[winner], winner.result()) if winner else (first, next(iter(runs)).result())
            finally:
                for ended in runs.keys() - {winner}:
                    ended.add_done_callback(discard)

        async def arace(_: float) -> Won:
            answers, errors, alone = list[Won](), list[Exception](), attempt.record.attempts

            async def enter(which: Attempt) -> None:
                try:
                    answers.append((which, await adrive(*run(which))))
                except Exception as error:
                    errors.append(error)
                if answers or len(errors) == 2 or attempt.record.attempts == alone:
                    group.cancel_scope.cancel()

            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(enter, first)
                    await layer.context.clock.asleep(delay)
                    group.start_soon(enter, attempt.beside())
                if not answers:
                    raise errors[0]
                return answers.pop(0)
            finally:
                with anyio.CancelScope(shield=True):
                    for _loser, response in answers:
                        await response.aclose()

        if not can_resend(request):
            return (yield from layer.forward(request, attempt))
        first, won = attempt.apart(), list[Won]()
        try:
            won.append((yield Run(race, arace)))
        finally:
            attempt.absorb(won[0][0] if won else first)
        return won[0][1]

    return Layer("hedge", flow)


def discard(ended: "Future[httpx.Response]") -> None:
    if not ended.exception():
        ended.result().close()
