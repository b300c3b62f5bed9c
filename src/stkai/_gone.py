"""Names of stkai 0.4 that this library, which covers only its HTTP client, does not have."""

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
    """Raise what Python raises for a missing name, and say so if stkai 0.4 had it.

    Args:
        module: The module that was asked.
        name: The missing name.
        imported: Whether this was `from module import name`: there Python replaces the message of an AttributeError
            with its own, but keeps that of an ImportError. Detected from the calling frame by default.
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
