"""Names of stkai 0.4 that are not part of this library, which is its HTTP client alone."""

import sys
from typing import Final, NoReturn

_GONE: Final = frozenset(
    {
        *("Agent", "AgentConfig", "ChatRequest", "ChatResponse", "ChatResponseStream", "ChatStatus"),
        *("ConversationContext", "UseConversation", "agents"),
        *(
            "FileUploadConfig",
            "FileUploadOptions",
            "FileUploadRequest",
            "FileUploadResponse",
            "FileUploadStatus",
        ),
        *("FileUploadTargetType", "FileUploader"),
        *(
            "RemoteQuickCommand",
            "RqcConfig",
            "RqcExecutionStatus",
            "RqcOptions",
            "RqcRequest",
            "RqcResponse",
            "rqc",
        ),
        *("ConfigEntry", "ConfigEnvVarError", "ConfigValidationError", "STKAIConfig", "SdkConfig", "StkCLI"),
        *("CongestionAwareHttpClient", "Jitter", "RateLimitStrategy", "RetryAttemptContext", "TokenInfo"),
    }
)

_PAGE: Final = "docs/migration.md"


def refuse(module: str, name: str, *, imported: bool | None = None) -> NoReturn:
    """Raise what Python raises for a name that a module lacks; for one of stkai 0.4, say so.

    Args:
        module: the module that was asked.
        name: what it lacks.
        imported: whether this was `from module import name`, where Python replaces the message of an AttributeError by
            one of its own, while an ImportError keeps it. By default found out by the caller's caller.
    """
    msg = f"module {module!r} has no attribute {name!r}"
    if name not in _GONE:
        raise AttributeError(msg)
    msg = (
        f"{name} of stkai 0.4 is not part of this library, which is its HTTP client alone: keep stkai 0.4 for it, or"
        f" call the API through stkai.build_client(). The page {_PAGE} lists what has changed"
    )
    if imported is None:
        # A package is first asked by the import system, which passes on any error but an AttributeError.
        imported = sys._getframe(2).f_code.co_name == "_handle_fromlist"  # noqa: SLF001
    raise ImportError(msg, name=module) if imported else AttributeError(msg)
