"""The client of a box service: ``Box``, and what belongs to it."""

from box_policy.sdk._async.box import AsyncBox
from box_policy.sdk._async.ephemeral import AsyncEphemeralBox
from box_policy.sdk._async.exec import AsyncExecNamespace
from box_policy.sdk._async.files import AsyncFilesNamespace
from box_policy.sdk._async.labels import AsyncLabelsNamespace
from box_policy.sdk._async.runs import AsyncRun, AsyncStreamRun
from box_policy.sdk._async.session import AsyncExecSessionHandle
from box_policy.sdk._sync.box import Box
from box_policy.sdk._sync.ephemeral import EphemeralBox
from box_policy.sdk._sync.exec import ExecNamespace
from box_policy.sdk._sync.files import FilesNamespace
from box_policy.sdk._sync.labels import LabelsNamespace
from box_policy.sdk._sync.runs import Run, StreamRun
from box_policy.sdk._sync.session import ExecSessionHandle
from box_policy.sdk.errors import (
    BoxAuthError,
    BoxConnectionError,
    BoxError,
    BoxFileError,
    BoxNotFoundError,
    BoxTimeoutError,
    BoxUnsupportedError,
    PolicyIssueDict,
    PolicyValidationError,
)
from box_policy.sdk.types import (
    AllowDenyNetworkPolicy,
    BoxConfig,
    BoxConnectionOptions,
    BoxData,
    BoxGetOptions,
    BoxSize,
    CamelCaseNetworkPolicy,
    CodeLanguage,
    CustomNetworkPolicy,
    EphemeralBoxConfig,
    EphemeralBoxData,
    ExecExitChunk,
    ExecOutputChunk,
    ExecStreamChunk,
    FileEntry,
    FileStat,
    ListOptions,
    NetworkPolicy,
    NetworkPolicyInput,
    RunCost,
    RunStatus,
    Runtime,
    Snapshot,
    UploadFileEntry,
    VercelNetworkPolicy,
    VercelSubnets,
)
from box_policy.sdk.unsupported import UnsupportedNamespace

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
]
