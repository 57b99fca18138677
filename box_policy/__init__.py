"""box-policy: decides what a sandbox may connect to."""

TYPE_CHECKING = False  # as typing.TYPE_CHECKING, whose import takes longer than everything else here
if TYPE_CHECKING:
    from box_policy.sdk import (
        AllowDenyNetworkPolicy,
        AsyncBox,
        AsyncEphemeralBox,
        AsyncExecNamespace,
        AsyncExecSessionHandle,
        AsyncFilesNamespace,
        AsyncLabelsNamespace,
        AsyncRun,
        AsyncStreamRun,
        Box,
        BoxAuthError,
        BoxConfig,
        BoxConnectionError,
        BoxConnectionOptions,
        BoxData,
        BoxError,
        BoxFileError,
        BoxGetOptions,
        BoxNotFoundError,
        BoxSize,
        BoxTimeoutError,
        BoxUnsupportedError,
        CamelCaseNetworkPolicy,
        CodeLanguage,
        CustomNetworkPolicy,
        EphemeralBox,
        EphemeralBoxConfig,
        EphemeralBoxData,
        ExecExitChunk,
        ExecNamespace,
        ExecOutputChunk,
        ExecSessionHandle,
        ExecStreamChunk,
        FileEntry,
        FilesNamespace,
        FileStat,
        LabelsNamespace,
        ListOptions,
        NetworkPolicy,
        NetworkPolicyInput,
        PolicyIssueDict,
        PolicyValidationError,
        Run,
        RunCost,
        RunStatus,
        Runtime,
        Snapshot,
        StreamRun,
        UnsupportedNamespace,
        UploadFileEntry,
        VercelNetworkPolicy,
        VercelSubnets,
    )

__version__ = "0.1.0"

__all__ = [
    "AllowDenyNetworkPolicy",
    "AsyncBox",
    "AsyncEphemeralBox",
    "AsyncExecNamespace",
    "AsyncExecSessionHandle",
    "AsyncFilesNamespace",
    "AsyncLabelsNamespace",
    "AsyncRun",
    "AsyncStreamRun",
    "Box",
    "BoxAuthError",
    "BoxConfig",
    "BoxConnectionError",
    "BoxConnectionOptions",
    "BoxData",
    "BoxError",
    "BoxFileError",
    "BoxGetOptions",
    "BoxNotFoundError",
    "BoxSize",
    "BoxTimeoutError",
    "BoxUnsupportedError",
    "CamelCaseNetworkPolicy",
    "CodeLanguage",
    "CustomNetworkPolicy",
    "EphemeralBox",
    "EphemeralBoxConfig",
    "EphemeralBoxData",
    "ExecExitChunk",
    "ExecNamespace",
    "ExecOutputChunk",
    "ExecSessionHandle",
    "ExecStreamChunk",
    "FileEntry",
    "FileStat",
    "FilesNamespace",
    "LabelsNamespace",
    "ListOptions",
    "NetworkPolicy",
    "NetworkPolicyInput",
    "PolicyIssueDict",
    "PolicyValidationError",
    "Run",
    "RunCost",
    "RunStatus",
    "Runtime",
    "Snapshot",
    "StreamRun",
    "UnsupportedNamespace",
    "UploadFileEntry",
    "VercelNetworkPolicy",
    "VercelSubnets",
    "__version__",
]


if not TYPE_CHECKING:  # a checker is to complain about names that aren't there

    def __getattr__(name: str) -> object:
        """The client's names, imported at their first use: the gate, and each box, must not pay for them."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from box_policy import sdk

        value = globals()[name] = getattr(sdk, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
