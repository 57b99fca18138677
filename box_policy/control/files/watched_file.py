"""What a watched policy file holds, and what its next revision changes. No input, no output."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from box_policy.audit.records import Outcome
from box_policy.control.files.trusted_file import Sample
from box_policy.control.files.trusted_path import Trail
from box_policy.policy.model import NetworkPolicy

type State = Literal["ok", "refused", "missing", "being_written"]


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What a file is worth now."""

    path: str
    box: str | None
    """The box of its name; None for a file that serves whichever box has no other."""
    state: State
    """``ok``: what it holds is the last that counted. ``refused``: it is no policy, or can't be trusted.
    Unless it is ok, the policy that counted last stays in force."""
    error: str | None
    """What is wrong, one line an error; only if refused."""
    since: float
    """Seconds since the epoch, when that began."""


@dataclass(frozen=True, slots=True)
class Good:
    """A policy that isn't the one that counted last."""

    digest: bytes
    policy: NetworkPolicy


@dataclass(frozen=True, slots=True)
class Bad:
    """No policy, or one that can't be trusted."""

    error: str
    digest: bytes | None = None
    """Of the content, if that is what is wrong."""


@dataclass(frozen=True, slots=True)
class Same:
    """A content that was judged before."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class BeingWritten:
    """Nothing can be said until it is whole."""

    sample: Sample | None


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no file."""


type Finding = Good | Bad | Same | BeingWritten | Gone


@dataclass(frozen=True, slots=True)
class Report:
    """A revision that doesn't count, to be recorded."""

    outcome: Outcome
    detail: str


@dataclass(slots=True, eq=False)
class WatchedFile:
    """One policy file, whatever its suffix, and the history of its revisions as far as that matters."""

    paths: tuple[Path, ...]
    """Where it is. Empty if there is none; several are too many."""
    box: str | None
    state: State = "missing"
    error: str | None = None
    since: float = 0.0
    policy: NetworkPolicy | None = None
    """The last that counted."""
    sample: Sample | None = None
    """Of a content that may count if it stays."""
    trail: Trail = field(default_factory=Trail)
    """What its path led over."""
    noticed: float | None = None
    """Monotonic seconds, when the change was noticed that hasn't been judged, or put in force, yet."""
    _counted: bytes | None = None
    _refused: Bad | None = None
    """The last revision that was refused, until one counts again or the file goes."""
    last_path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.last_path = self.paths[0]

    def move(self, paths: tuple[Path, ...]) -> None:
        """The file has another suffix now, or several, or is none."""
        self.paths = paths
        if paths and self.last_path not in paths:
            self.last_path = paths[0]
            self.sample = None

    def notice(self, event: float | None, now: float) -> None:
        """The file is to be looked at, perhaps because an event told of a change."""
        if event is not None:
            self.noticed, self.sample = event, None  # whoever writes to it may not be done
        elif self.noticed is None:
            self.noticed = now

    @property
    def known(self) -> frozenset[bytes]:
        """Digests of contents that needn't be judged again."""
        refused = self._refused.digest if self._refused is not None else None
        return frozenset(digest for digest in (self._counted, refused) if digest is not None)

    def is_news(self, finding: Finding) -> bool:
        """Whether anything is to be done about what was found."""
        match finding:
            case Same(digest=digest) if self._refused is not None and digest == self._refused.digest:
                return (self.state, self.error) != ("refused", self._refused.error)
            case Same():
                return self.state != "ok"
            case Bad():
                return finding != self._refused or self.state != "refused"
        return True

    def take(self, finding: Finding, now: float) -> Report | None:
        """Note what was found. A good revision counts only once :meth:`count` says so."""
        self.sample = finding.sample if isinstance(finding, BeingWritten) else None
        if not isinstance(finding, Good | BeingWritten):
            self.noticed = None
        match finding:
            case Good():
                pass  # it is as it was until the policy is in force
            case BeingWritten():
                self._set("being_written", None, now)
            case Same(digest=digest) if self._refused is not None and digest == self._refused.digest:
                self._set("refused", self._refused.error, now)
            case Same():
                self._refused = None
                self._set("ok", None, now)
            case Bad(error=error):
                again = finding == self._refused
                self._refused = finding
                self._set("refused", error, now)
                return None if again else Report(Outcome.REFUSED, error)
            case Gone():
                again = self.state == "missing"
                self._refused = None
                self._set("missing", None, now)
                if not again and self.policy is not None:
                    return Report(Outcome.MISSING, "the file has gone")
        return None

    def count(self, good: Good, now: float) -> None:
        """The policy is in force, or another that was put later."""
        self.policy, self._counted, self._refused = good.policy, good.digest, None
        self.noticed = None
        self._set("ok", None, now)

    def fail(self, error: str, now: float) -> bool:
        """A good policy could not be put in force; it is tried again. Whether that is news."""
        # Some of its boxes may have it: what counted before isn't what all of them have.
        self._counted = None
        news = self.error != error
        self._set("refused", error, now)
        return news

    def _set(self, state: State, error: str | None, now: float) -> None:
        if (state, error) != (self.state, self.error):
            self.state, self.error, self.since = state, error, now

    def status(self, path: str) -> FileStatus:
        return FileStatus(path, self.box, self.state, self.error, self.since)
