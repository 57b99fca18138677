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
Backend = Literal["namespaces", "docker"]
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
)
"""Every form in which a network policy may be written. Which keys belong together a type checker sees."""


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
    """Processor time of the program, in nanoseconds; 0: not known here."""
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
    image: str | None = None
    """The container image that it was made of; None with other backends."""
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
    """Needed with an ``http`` address; else from BOX_POLICY_API_KEY or UPSTASH_BOX_API_KEY."""
    apiKey: str | None
    """The same, as the JavaScript client writes it."""
    base_url: str | None
    """Else from BOX_POLICY_BASE_URL or UPSTASH_BOX_BASE_URL, or a service of this process's own."""
    baseUrl: str | None
    """The same."""
    timeout: float | None
    """Milliseconds for an answer; 600,000 unless it is given; None: no limit."""
    backend: Backend | None
    """Which of this process's own services, when there is no ``base_url``: the one whose boxes have this
    machine's programs, or the one whose boxes are Docker containers. Else from BOX_POLICY_BACKEND; ``docker``
    where an image is named; ``namespaces``."""


class BoxConnectionOptions(_Connection, total=False):
    """Which service, and how long to wait for it, in milliseconds."""


class ListOptions(_Connection, total=False):
    """Options of ``Box.list``."""

    label: str | None


class BoxGetOptions(_Connection, total=False):
    """Options of ``Box.get`` and ``Box.get_by_name``."""

    git_token: str | None
    """Not supported."""
    debug: bool
    """Log each request to ``box_policy.sdk``, at level DEBUG; False unless it is given."""
    delete_on_exit: bool
    """Delete the box at the end of its ``with`` block; False unless it is given."""


class _Creation(_Connection, total=False):
    name: str | None
    """Finds it again; none unless it is given."""
    labels: list[str] | None
    """Find it again; none unless they are given."""
    runtime: Runtime | str | None
    """Demands that its programs are there; no demand unless it is given."""
    image: str | None
    """A container image whose programs the box has; else, with Docker, from BOX_POLICY_IMAGE."""
    size: BoxSize | None
    """Bounds of memory, disk and processors; ``small`` unless it is given."""
    ttl: int | None
    """Seconds after which the box ends by itself, at most 259,200; never unless it is given."""
    env: dict[str, str] | None
    """Variables of every program in it; none unless they are given."""
    attach_headers: dict[str, dict[str, str]] | None
    """Not supported."""
    network_policy: NetworkPolicyInput | None
    """In any form; the service's default unless it is given."""
    networkPolicy: NetworkPolicyInput | None
    """The same, as the JavaScript client writes it."""
    debug: bool
    """Log each request to ``box_policy.sdk``, at level DEBUG; False unless it is given."""
    delete_on_exit: bool
    """Delete the box at the end of its ``with`` block; False unless it is given."""


class BoxConfig(_Creation, total=False):
    """Options of ``Box.create`` and ``Box.from_snapshot``. The last six are not supported here."""

    keep_alive: bool
    """The box can't be paused; False unless it is given."""
    init_command: str | None
    browser: bool
    agent: Mapping[str, Any] | None
    git: Mapping[str, Any] | None
    skills: list[str] | None
    mcp_servers: list[Any] | None


class EphemeralBoxConfig(_Creation, total=False):
    """Options of ``EphemeralBox.create`` and ``EphemeralBox.from_snapshot``.

    Without a ``ttl`` the box ends after 259,200 seconds.
    """
