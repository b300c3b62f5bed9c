"""The fixtures of stkai.testing.pytest, in a pytest of their own."""

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
    import os
    import stkai

    os.environ["STKAI_RETRY_MAX_RETRIES"] = "9"
    os.environ["STKAI_AUTH_TOKEN"] = "of-the-machine"
    stkai.STKAI.configure(retry={"initial_delay": 7})
    pytest_plugins = ["stkai.testing.pytest"]
"""


@pytest.fixture(autouse=True)
def without_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start faster."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, test: str, passed: int) -> None:
    pytester.makeconftest(CONFTEST)
    # An installed StackSpot CLI.
    cli = pytester.mkpydir("oscli") / "core"
    cli.mkdir()
    (cli / "__init__.py").touch()
    (cli / "http.py").write_text("get_with_authorization = post_with_authorization = print")
    pytester.syspathinsert()
    pytester.makepyfile(test)
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=passed)


def test_settings_are_isolated_and_a_server_is_new_for_each_test(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        import os
        import pytest
        import stkai
        from stkai.testing import QuotaServer

        @pytest.mark.parametrize("number", [1, 2])
        def test_each_test_has_its_own_settings(stkai_settings, number):
            assert stkai_settings is stkai.STKAI
            assert stkai.STKAI.config == stkai.Settings()
            stkai.STKAI.configure(retry={"max_retries": number})
            assert stkai.STKAI.config.retry.max_retries == number

        def test_variables_that_are_set_later_count(stkai_settings, monkeypatch):
            for number in ("1", "2"):
                monkeypatch.setenv("STKAI_RETRY_MAX_RETRIES", number)
                assert stkai.STKAI.config.retry.max_retries == int(number)

        def test_afterwards_the_environment_is_as_before():
            assert os.environ["STKAI_RETRY_MAX_RETRIES"] == "9"
            assert stkai.STKAI.config.retry.max_retries == 9
            assert stkai.STKAI.config is stkai.STKAI.config

        def test_a_client_of_the_machine_imports_its_cli():
            import oscli.core.http

        @pytest.mark.parametrize("number", [1, 2])
        def test_each_test_has_its_own_server(stkai_settings, stkai_server, monkeypatch, number):
            assert isinstance(stkai_server, QuotaServer)
            for name, value in stkai_server.env().items():
                monkeypatch.setenv(name, value)
            with stkai.build_client() as client:
                assert client.post(stkai_server.create_url(), data={}).status_code == 200
            assert stkai_server.count(method="POST", status=200, path="/v1") == 1
        """,
        passed=7,
    )
