"""Names of stkai 0.4 that are not part of this library, which has only the HTTP client."""

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
    """Raise what Python raises for a missing name of a module; for a name of stkai 0.4, say so.

    Args:
        module: the module that was asked.
        name: the missing name.
        imported: whether this was `from module import name`, for which Python replaces an AttributeError's message with
            its own, but keeps an ImportError's. By default it is found out from the caller's caller.
    """
    msg = f"module {module!r} has no attribute {name!r}"
    if name not in _GONE:
        raise AttributeError(msg)
    msg = (
        f"{name} of stkai 0.4 is not part of this library, which has only the HTTP client: keep stkai 0.4 for it, or"
        f" call the API through stkai.build_client(). The page {_PAGE} lists what has changed"
    )
    if imported is None:
        # The import system asks a package first, and passes on any error but an AttributeError.
        imported = sys._getframe(2).f_code.co_name == "_handle_fromlist"  # noqa: SLF001
    raise ImportError(msg, name=module) if imported else AttributeError(msg)
