"""For testing code that uses stkai, without sleeping and without the real service.

Pass a `FakeClock` wherever a `clock=` is accepted. `QuotaServer` is an embedded server that behaves like StackSpot AI;
it needs the extra: `pip install "stkai[testing]"`.
"""

from ._fake_clock import FakeClock
from ._replies import Answer, Edit, Hang, HangUp, RequestRecord, Reset, Slow
from ._server import QuotaServer

__all__ = ["Answer", "Edit", "FakeClock", "Hang", "HangUp", "QuotaServer", "RequestRecord", "Reset", "Slow"]
__dir__ = __all__.copy
