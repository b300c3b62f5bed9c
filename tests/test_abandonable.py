"""Work in another thread, and those who wait for it."""

import threading

import pytest

from stkai._abandonable import Job


@pytest.mark.real_time
def test_a_job_ends_although_its_waiters_leave_at_that_moment() -> None:
    """In a free-threaded Python, they leave between any two steps of its end."""
    for _ in range(30):
        jobs = [Job(lambda: None) for _ in range(100)]
        begin = threading.Barrier(9)

        def leave(jobs: list[Job] = jobs, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for job in jobs:
                while not job.wait(0.0):
                    pass

        waiters = [threading.Thread(target=leave, daemon=True) for _ in range(8)]
        for waiter in waiters:
            waiter.start()
        begin.wait()
        for job in jobs:
            job.run()
        for waiter in waiters:
            waiter.join(10.0)
        assert all(job.is_done for job in jobs)
        assert not any(waiter.is_alive() for waiter in waiters)
