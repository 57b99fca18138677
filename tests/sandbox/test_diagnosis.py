"""What a user is told when this machine can't make a box."""

import errno
import os

import pytest

from box_policy.sandbox.namespaces import diagnosis


def explain(number: int, step: str, monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    monkeypatch.setattr(diagnosis, "_setting", lambda path: settings.get(path.rpartition("/")[2]))
    return diagnosis.explain(OSError(number, os.strerror(number), step))


@pytest.mark.parametrize(
    ("setting", "value", "number"),
    [
        ("max_user_namespaces", "0", errno.ENOSPC),
        ("unprivileged_userns_clone", "0", errno.EPERM),
        ("apparmor_restrict_unprivileged_userns", "1", errno.EACCES),
    ],
)
def test_a_switch_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, number: int
) -> None:
    text = explain(number, "unshare", monkeypatch, **{setting: value})
    assert f"{setting} is {value}" in text
    assert "sysctl" in text


@pytest.mark.parametrize(
    ("number", "step", "expected"),
    [
        (errno.EOPNOTSUPP, "nf_tables", "modprobe"),
        (errno.EPERM, "nf_tables", "modprobe"),
        (errno.EPERM, "unshare", "--security-opt seccomp=unconfined"),
        (errno.ENOSPC, "unshare", "user.max_*_namespaces"),
        (errno.ENOSYS, "open_tree", "Linux 5.12"),
        (errno.ENODEV, "mount overlay on /x", "modprobe"),
        (errno.EINVAL, "mount overlay on /x", "mount overlay on /x: Invalid argument"),
    ],
)
def test_what_where_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, number: int, step: str, expected: str
) -> None:
    text = explain(number, step, monkeypatch, apparmor_restrict_unprivileged_userns="0")
    assert expected in text
    assert f"{step}: {os.strerror(number)}" in text
    assert "\n" not in text


def test_a_switch_is_not_blamed_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    text = explain(errno.EINVAL, "mount", monkeypatch, apparmor_restrict_unprivileged_userns="1")
    assert "apparmor" not in text
