"""The forms of what goes to the service and what comes from it, under the official client's names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict

from box_policy.policy.model import NetworkPolicy as PolicyModel

Runtime = Literal[
    "node",
    "python",
    "golang",
    "ruby",
    "rust",
    "node-alpine",
    "python-alpine",
    "golang-alpine",
    "ruby-alpine",
    "rust-alpine",
]
BoxSize = Literal["small", "medium", "large"]
CodeLanguage = Literal["js", "ts", "python"]
RunStatus = Literal["running", "completed", "failed", "cancelled", "detached"]


class AllowDenyNetworkPolicy(TypedDict):
    """Everything, or nothing."""

    mode: Literal["allow-all", "deny-all"]


class CustomNetworkPolicy(TypedDict):
    """Domains and address ranges. Only the keys that are set are there."""

    mode: Literal["custom"]
    allowed_domains: NotRequired[list[str]]
    allowed_cidrs: NotRequired[list[str]]
    denied_cidrs: NotRequired[list[str]]


class CamelCaseNetworkPolicy(TypedDict):
    """The same as the JavaScript client writes it."""

    mode: Literal["custom"]
    allowedDomains: NotRequired[list[str]]
    allowedCidrs: NotRequired[list[str]]
    deniedCidrs: NotRequired[list[str]]


class VercelSubnets(TypedDict, total=False):
    """``subnets`` of the Vercel form."""

    allow: list[str]
    deny: list[str]


class VercelNetworkPolicy(TypedDict, total=False):
    """The Vercel form. Each domain's list of rules is empty: rules need decrypted traffic."""

    allow: list[str] | dict[str, list[Any]]
    subnets: VercelSubnets


NetworkPolicy = AllowDenyNetworkPolicy | CustomNetworkPolicy
"""A network policy in canonical form: what ``box.network_policy`` is."""

NetworkPolicyInput = (
    Literal["allow-all", "deny-all"]
    | AllowDenyNetworkPolicy
    | CustomNetworkPolicy
    | CamelCaseNetworkPolicy
    | VercelNetworkPolicy
    | PolicyModel
    | Mapping[str, object]
)
"""Every form in which a network policy may be written."""


@dataclass
class RunCost:
    """What a run has cost. A box of one's own has no tokens and no price: only ``compute_ms`` is ever set."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    compute_ms: float = 0
    total_usd: float = 0


@dataclass(frozen=True)
class ExecOutputChunk:
    """Some output of a program, as text. A character is never cut in two."""

    data: str
    type: Literal["output"] = "output"
    stream: Literal["stdout", "stderr"] | None = None
    """Which stream it was written to; None if the service doesn't say."""


@dataclass(frozen=True)
class ExecExitChunk:
    """The program has ended."""

    exit_code: int
    cpu_ns: int = 0
    type: Literal["exit"] = "exit"
    timed_out: bool = False


ExecStreamChunk = ExecOutputChunk | ExecExitChunk


class _Answer(BaseModel):
    # A newer service may say more.
    model_config = ConfigDict(extra="allow")


class FileEntry(_Answer):
    """A file or directory, as ``files.list`` shows it."""

    name: str
    path: str
    size: int
    is_dir: bool
    mod_time: str


class FileStat(_Answer):
    """A file's metadata. Compare ``version`` for equality alone: it changes with the file."""

    type: Literal["file", "directory", "symlink", "other"]
    size: int
    mod_time: str
    inode: int
    version: str


class Snapshot(_Answer):
    """The files of a box at one moment."""

    id: str
    name: str
    box_id: str
    size_bytes: int
    status: Literal["creating", "ready", "error", "deleted"]
    created_at: int


class BoxData(_Answer):
    """A box, as ``Box.list`` shows it. Times are seconds since the epoch."""

    id: str
    status: str
    created_at: int
    updated_at: int
    name: str | None = None
    labels: list[str] | None = None
    size: str | None = None
    keep_alive: bool | None = None
    runtime: str | None = None
    network_policy: dict[str, Any] | None = None
    last_activity_at: int | None = None


class EphemeralBoxData(BoxData):
    """A box with an end."""

    ephemeral: bool | None = None
    expires_at: int = 0


class UploadFileEntry(TypedDict):
    """A local file, and where it goes in the box."""

    path: str
    destination: str


class _Connection(TypedDict, total=False):
    api_key: str | None
    apiKey: str | None
    base_url: str | None
    baseUrl: str | None
    timeout: float | None


class BoxConnectionOptions(_Connection, total=False):
    """Which service, and how long to wait for it, in milliseconds."""


class ListOptions(_Connection, total=False):
    """Options of ``Box.list``."""

    label: str | None


class BoxGetOptions(_Connection, total=False):
    """Options of ``Box.get`` and ``Box.get_by_name``."""

    git_token: str | None
    debug: bool
    delete_on_exit: bool


class _Creation(_Connection, total=False):
    name: str | None
    labels: list[str] | None
    runtime: Runtime | str | None
    size: BoxSize | None
    ttl: int | None
    env: dict[str, str] | None
    attach_headers: dict[str, dict[str, str]] | None
    network_policy: NetworkPolicyInput | None
    networkPolicy: NetworkPolicyInput | None
    debug: bool
    delete_on_exit: bool


class BoxConfig(_Creation, total=False):
    """Options of ``Box.create`` and ``Box.from_snapshot``."""

    keep_alive: bool
    init_command: str | None
    browser: bool
    agent: Mapping[str, Any] | None
    git: Mapping[str, Any] | None
    skills: list[str] | None
    mcp_servers: list[Any] | None


class EphemeralBoxConfig(_Creation, total=False):
    """Options of ``EphemeralBox.create`` and ``EphemeralBox.from_snapshot``; ``ttl`` is in seconds."""
