"""What `import stkai` loads, and which names it has."""

import ast
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest

import stkai
import stkai.events
import stkai.limiters
import stkai.stores
import stkai.testing
import stkai.transports

pytestmark = pytest.mark.no_cover

SOURCE = Path(stkai.__file__).parent

HEAVY = {
    "aiohttp",
    "anyio",
    "asyncio",
    "difflib",
    "matplotlib",
    "oscli",
    "pydantic",
    "pydantic_settings",
    "requests",
}
HEAVY |= {"rich", "tenacity", "trio", "typer", "urllib3"}

LAYERS = """
import httpx, stkai
from stkai.transports import adaptive, auth, retry, token_bucket
class Provider(stkai.AuthProvider):
    def get_access_token(self): return "t"
limiters = adaptive(stkai.AimdLimiter(1, 1)), token_bucket(stkai.TokenBucket(1, 1))
stack = stkai.StackBuilder([retry(), auth(Provider()), *limiters])
client = stkai.HttpClient(stack.build(httpx.MockTransport(lambda request: httpx.Response(200))))
client.post("https://api.example.com", data={"a": 1})
"""


def loaded_by(code: str) -> set[str]:
    """The top-level modules that some code loads in a fresh Python, beyond those of httpx."""
    script = (
        "import sys, json, httpx; before = set(sys.modules)\n"
        f"{code}\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    environment = {"PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    return set(json.loads(done.stdout))


WITHOUT_LAYERS = """
import stkai
assert not {"stkai.transports", "stkai._builder", "stkai._client"} & set(sys.modules)
import stkai.transports, stkai.wires, stkai._config
stkai.STKAI
"""


def test_import_stkai_loads_no_layer_and_nothing_heavy_beyond_httpx() -> None:
    loaded = loaded_by(WITHOUT_LAYERS)
    assert "stkai" in loaded
    assert loaded & HEAVY == set()


def test_a_handmade_stack_sends_a_request_without_loading_anything_heavy() -> None:
    assert loaded_by(LAYERS) & HEAVY == set()


def test_settings_and_server_are_imported_on_first_use() -> None:
    server = "import stkai.testing; stkai.testing.QuotaServer(); assert 'aiohttp' not in sys.modules"
    assert "pydantic_settings" in loaded_by(f"{server}; stkai.STKAI.config")


FIRST_USES = """
import json, sys
from importlib import import_module

class Imports:
    # Python locks each module while it imports it, and locks it before it imports the module's package.
    @staticmethod
    def find_spec(name, *_):
        frame = sys._getframe()
        while (frame := frame.f_back) and name.startswith("stkai"):
            holder = frame.f_locals.get("name", "")
            if frame.f_code.co_name == "_find_and_load_unlocked" and holder.startswith("stkai") and holder != name:
                waits.setdefault(holder, []).append(name)

def forget(*kept):
    for name in [name for name in sys.modules if name.startswith("stkai") and not name.startswith(kept)]:
        del sys.modules[name]
    return import_module("stkai")

waits = {}
sys.meta_path.insert(0, Imports)
stkai = forget("-")
homes = {getattr(getattr(stkai, name), "__module__", "stkai"): name for name in stkai.__all__}
submodules = [name for name in dir(stkai) if f"stkai.{name}" in sys.modules]
for name in [*homes.values(), *submodules]:
    getattr(forget("stkai._config."), name)
print(json.dumps(waits))
"""


def test_threads_may_begin_with_any_two_names_at_the_same_moment() -> None:
    """Otherwise, one could hold the lock of a module that the other one waits for, and the reverse."""
    done = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True, check=True)
    waits = {name: set(names) for name, names in json.loads(done.stdout).items()}
    assert "stkai.transports._layer_transport" in waits["stkai._exchange"]
    assert cycles_in(waits) == {}


PUBLIC = [stkai, stkai.events, stkai.limiters, stkai.stores, stkai.testing, stkai.transports]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_all_has_no_repeats_and_every_name_in_it_resolves(module: ModuleType) -> None:
    names = module.__all__
    assert sorted(names) == sorted(set(names))
    for name in names:
        assert getattr(module, name) is not None
    assert set(names) <= set(dir(module))


@pytest.mark.parametrize("module", [stkai, stkai.transports], ids=lambda module: module.__name__)
def test_all_is_complete(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module  # not `from . import submodule`
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }
    elsewhere = {"AimdLimiter", "TokenBucket"} if module is stkai else set()  # `from .limiters import *`
    assert imported - {"*"} == set(module.__all__) - elsewhere


def test_events_and_limiters_can_be_imported_from_the_package_which_does_not_list_them() -> None:
    for module in (stkai.events, stkai.limiters):
        for name in module.__all__:
            assert getattr(stkai, name) is getattr(module, name)
    listed = {"AimdLimiter", "TokenBucket"}
    assert set(dir(stkai)) & {*stkai.events.__all__, *stkai.limiters.__all__} == listed


def test_dir_shows_the_public_submodules() -> None:
    submodules = {path.stem for path in SOURCE.iterdir() if path.suffix in {"", ".py"}} - {"__pycache__"}
    submodules = {name for name in submodules if not name.startswith("_")}
    assert {"costs", "events", "limiters", "stores", "telemetry", "testing", "transports"} <= submodules
    assert submodules <= set(dir(stkai))
    assert submodules <= {name for name in dir(stkai) if isinstance(getattr(stkai, name), ModuleType)}


def test_dir_of_a_public_module_shows_only_what_is_public() -> None:
    for module in (stkai, stkai.events, stkai.transports):
        assert [name for name in dir(module) if name.startswith("_") and not name.endswith("__")] == []
    for module in (
        stkai.costs,
        stkai.events,
        stkai.limiters,
        stkai.stores,
        stkai.telemetry,
        stkai.testing,
        stkai.wires,
    ):
        assert dir(module) == sorted(module.__all__)


NEED_NO_EXTRA = [
    stkai, stkai.costs, stkai.events, stkai.limiters, stkai.stores, stkai.testing, stkai.transports, stkai.wires
]  # fmt: skip


@pytest.mark.parametrize("module", NEED_NO_EXTRA, ids=lambda module: module.__name__)
def test_frameworks_can_read_the_type_hints_of_what_is_public(module: ModuleType) -> None:
    for public in (getattr(module, name) for name in module.__all__):
        if inspect.isfunction(public) or inspect.isclass(public):
            get_type_hints(public)
        for name, method in inspect.getmembers(public, inspect.isfunction):
            if method.__module__.startswith("stkai.") and (name == "__init__" or not name.startswith("_")):
                get_type_hints(method)


SEEN_ELSEWHERE = {"h2", "oscli"}  # httpcore imports h2, and StackSpot CLI is in no frozen program.


def test_what_is_imported_by_its_name_is_imported_by_a_statement_too_which_freezers_look_for() -> None:
    nodes = [node for path in SOURCE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    texts = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]
    by_name = {
        name
        for text in texts
        if re.match(r"([\w.]+\.)?(import_module|LateModule)\(|partial\(import_module", text)
        for name in re.findall(r"'(\w+)[\w.]*'", text)
    }
    statements = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert "anyio" in by_name
    assert by_name - sys.stdlib_module_names - {"stkai", "annotationlib"} - SEEN_ELSEWHERE <= statements
    used = {
        alias.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        for each in node.body
        if isinstance(each, ast.Import)
        for alias in each.names
    }  # Nuitka skips TYPE_CHECKING.
    assert "tenacity" in used


def test_only_the_package_has_a_version() -> None:
    assert stkai.__version__[0].isdigit()
    assert not hasattr(stkai.transports, "__version__")


def test_the_fixed_public_names_exist() -> None:
    fixed = """
        build_client build_async_client build_transport build_async_transport StackBuilder create_standalone_auth
        RetryPolicy BearerAuth TokenBucket AimdLimiter RequestOptions CallRecord Clock SystemClock Layer Context
        HttpClient AsyncHttpClient StkCLIHttpClient StandaloneHttpClient EnvironmentAwareHttpClient
        TokenBucketRateLimitedHttpClient AdaptiveRateLimitedHttpClient AuthProvider ClientCredentialsAuthProvider
        AuthenticationError RetryableError ClientSideRateLimitError TokenAcquisitionTimeoutError
        ServerSideRateLimitError Retrying MaxRetriesExceededError STKAI AuthConfig RateLimitConfig record
    """
    assert set(fixed.split()) - set(stkai.__all__) == set()
    fixed = "Waited RateChanged RetryScheduled TokenRenewed Rejected Limiter PerHost"
    assert [name for name in fixed.split() if not hasattr(stkai, name)] == []
    fixed = """
        AuthTransport TokenBucketTransport AdaptiveTransport RetryTransport StkCLITransport AsyncAuthTransport
        AsyncTokenBucketTransport AsyncAdaptiveTransport AsyncRetryTransport auth token_bucket adaptive retry
        LayerTransport AsyncLayerTransport LayerBase Layer Context alike response_like play
    """
    assert set(fixed.split()) - set(stkai.transports.__all__) == set()
    assert {"FakeClock", "QuotaServer"} <= set(stkai.testing.__all__)
    assert stkai.stores.Law is stkai.stores.GroupRate


def test_importing_a_name_twice_yields_the_same_object() -> None:
    assert stkai.RateLimitConfig is stkai.RateLimitConfig
    assert type(stkai.STKAI.config.rate_limit) is stkai.RateLimitConfig


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    module: Any = stkai
    with pytest.raises(AttributeError, match="'stkai' has no attribute 'HttpKlient'"):
        module.HttpKlient  # noqa: B018
    assert not hasattr(module, "_config_x")
    with pytest.raises(AttributeError, match=r"'stkai\.transports' has no attribute 'RetryTransporter'"):
        module.transports.RetryTransporter  # noqa: B018
    assert {*stkai.__all__} <= {*dir(module)}
    assert {"AuthTransport", "retry"} <= {*dir(module.transports)}


def test_only_the_clock_reads_time_or_draws_random_numbers() -> None:
    forbidden = {"time", "random", "secrets"}
    found = {name: imports_of(name) & forbidden for name in modules() if name != "stkai._clock"}
    assert {name: imported for name, imported in found.items() if imported} == {}


def test_no_module_imports_itself_through_others() -> None:
    """Imports for type checkers and inside functions count as well."""
    assert cycles_in({name: imports_of(name) for name in modules()}) == {}


def cycles_in(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is left without the names that lead to no others."""
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    return graph


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports_of(name: str) -> set[str]:
    known = modules()
    package = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = ".".join(filter(None, (base if node.level else "", node.module)))
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.add(whole if whole in known else module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found - {name}
