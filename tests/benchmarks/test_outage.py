"""The result of the outage benchmark also holds at a small scale."""

RATE = 5.0


def test_with_a_budget_a_failing_server_gets_only_the_retries_that_the_budget_allows() -> None:
    from benchmarks.outage import BEGINS, ENDS, policies, simulate  # Imports matplotlib.

    load, calls = {}, {}
    for name, policy in policies().items():
        outcome = simulate(policy, RATE)
        during = range(int(BEGINS), int(ENDS))
        calls[name] = sum(outcome.calls[second] for second in during)
        load[name] = sum(outcome.received[second] for second in during) / calls[name]
        # Calls before and after the outage succeed.
        assert sum(count for second, count in outcome.failed.items() if second not in during) == 0
    assert load["no retries"] < 1.1
    assert load["3 retries"] > 3.5
    # 0.2 per call, 10 per second, and what had been saved by then.
    allowed = 0.2 + 10 / RATE + (10 * 10 + 10 * 0.2 * RATE + 10) / calls["no retries"]
    assert load["3 retries, budget of 0.2 and 10/s"] <= 1.1 + allowed
