"""What a box is shown of the host's files."""

import os
from pathlib import Path

import pytest

from box_policy.sandbox.namespaces import host_files
from box_policy.sandbox.namespaces.host_files import (
    Directory,
    HostFile,
    HostTree,
    Link,
    expose,
    settings_to_mask,
    survey_etc,
)


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    directory.mkdir()
    return directory


def write(path: Path, text: str = "text", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "name", ["ld.so.cache", "pip.conf", "services", "python3.conf", "ld-musl-x86_64.path"]
)
def test_listed_files_are_copied(etc: Path, name: str) -> None:
    path = write(etc / name)
    assert survey_etc(str(etc)).files == {str(path): b"text"}


@pytest.mark.parametrize(
    "name", ["shadow", "passwd", "sudoers", "machine-id", "krb5.keytab", "fstab", "resolv.conf"]
)
def test_others_are_not(etc: Path, name: str) -> None:
    write(etc / name)
    assert survey_etc(str(etc)) == host_files.EtcFiles()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o750])
def test_what_is_not_for_everyone_is_left_out(etc: Path, mode: int) -> None:
    write(etc / "pip.conf", mode=mode)
    (etc / "ssl").mkdir()
    (etc / "ssl").chmod(mode)
    assert survey_etc(str(etc)) == host_files.EtcFiles()


def test_private_parts_of_a_shown_directory_are_masked(etc: Path) -> None:
    write(etc / "ssl/openssl.cnf")
    key = write(etc / "ssl/key.pem", mode=0o640)
    private = etc / "ssl/private"
    private.mkdir()
    private.chmod(0o710)
    deep = write(etc / "ssl/a/b/key.pem", mode=0o600)
    survey = survey_etc(str(etc))
    assert survey.trees == [str(etc / "ssl")]
    assert sorted(survey.masked) == sorted(map(str, (key, private, deep)))


@pytest.mark.parametrize(
    "text",
    [
        "[global]\nindex-url = https://user:s3cret@mirror.test/simple\n",
        "extra-index-url=https://__token__:pypi-AgEI@mirror.test/\n",
        "//registry.test/:_authToken=npm_abc\n",
        "_auth = dXNlcjpwYXNz\n",
        "[ftp]\npassword: hunter2\n",
        "export API_KEY=abc\n",
        '[http]\n\textraHeader = "Authorization: basic abc"\n',
        "export AWS_SECRET_ACCESS_KEY=abc\n",
        '[url "https://ghp_abc@github.test/"]\n\tinsteadOf = https://github.test/\n',
        "index-url = https://:s3cret@mirror.test/\n",
        "index-url = https://user:pa%2Fss@mirror.test/\n",
        '{"password": "x"}\n',
        "header = Authorization: Bearer abc\n",
        "DB_PASS=x\nGITHUB_PAT=y\n",
        "TOKEN_X=abc\n",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "channels: [https://conda.test/t/ab-0123456789ab/x]\n",
        "\0https://user:s3cret@mirror.test/\n",
    ],
)
@pytest.mark.parametrize("name", ["pip.conf", "npmrc", "gitconfig", "profile"])
def test_settings_with_credentials_are_left_out(etc: Path, name: str, text: str) -> None:
    write(etc / name, text)
    assert survey_etc(str(etc)).files == {}


@pytest.mark.parametrize(
    "text",
    [
        "[global]\nindex-url = https://mirror.test/simple\ntimeout = 60\n",
        "registry=https://registry.test/\nstrict-ssl=true\n",
        "[user]\n\temail = someone@host.test\n",
        "PATH=/usr/bin:/bin\nexport PATH\n",
        "[user]\n\tauthor = Someone\n",
    ],
)
def test_settings_without_are_shown(etc: Path, text: str) -> None:
    write(etc / "pip.conf", text)
    assert survey_etc(str(etc)).files == {str(etc / "pip.conf"): text.encode()}


def test_profile_scripts_with_credentials_are_masked(etc: Path) -> None:
    write(etc / "profile.d/plain.sh", "alias ll='ls -l'\n")
    secret = write(etc / "profile.d/proxy.sh", "export http_proxy=http://u:p@proxy.test:8080\n")
    assert survey_etc(str(etc)).masked == [str(secret)]


def test_links_into_shown_directories_stay_links(etc: Path, tmp_path: Path) -> None:
    write(tmp_path / "usr/zone")
    (etc / "localtime").symlink_to("../usr/zone")
    survey = survey_etc(str(etc), visible=[str(tmp_path / "usr")])
    assert survey.links == {str(etc / "localtime"): "../usr/zone"}


def test_links_elsewhere_become_the_file(etc: Path, tmp_path: Path) -> None:
    write(tmp_path / "run/zone", "elsewhere")
    (etc / "localtime").symlink_to(tmp_path / "run/zone")
    survey = survey_etc(str(etc), visible=[str(tmp_path / "usr")])
    assert survey.files == {str(etc / "localtime"): b"elsewhere"}


def test_links_to_a_directory_elsewhere_are_left_out(etc: Path, tmp_path: Path) -> None:
    write(tmp_path / "home/secret")
    (etc / "ssl").symlink_to(tmp_path / "home")
    (etc / "fonts").symlink_to("absent")
    assert survey_etc(str(etc)) == host_files.EtcFiles()


def test_sockets_and_fifos_are_left_out(etc: Path) -> None:
    os.mkfifo(etc / "pip.conf", 0o666)
    assert survey_etc(str(etc)) == host_files.EtcFiles()


def test_a_directory_without_mounts_is_one_tree(tmp_path: Path) -> None:
    write(tmp_path / "opt/tool/bin/run")
    assert list(expose(str(tmp_path / "opt"), ["/", str(tmp_path / "optional")])) == [
        HostTree(str(tmp_path / "opt"), str(tmp_path / "opt"))
    ]


def test_a_directory_with_mounts_is_shown_in_parts(tmp_path: Path) -> None:
    usr = tmp_path / "usr"
    write(usr / "bin/run")
    write(usr / "lib/driver/a.so")
    write(usr / "lib/libc.so")
    write(usr / "note")
    (usr / "link").symlink_to("bin")
    os.mkfifo(usr / "fifo")
    assert list(expose(str(usr), [str(usr / "lib/driver")])) == [
        Directory(str(usr)),
        HostTree(str(usr / "bin"), str(usr / "bin")),
        Directory(str(usr / "lib")),
        HostTree(str(usr / "lib/driver"), str(usr / "lib/driver")),
        HostFile(str(usr / "lib/libc.so"), str(usr / "lib/libc.so")),
        Link(str(usr / "link"), "bin"),
        HostFile(str(usr / "note"), str(usr / "note")),
    ]


def test_what_is_not_there_is_not_shown(tmp_path: Path) -> None:
    assert list(expose(str(tmp_path / "absent"), [])) == []


def test_mount_points_are_read_with_their_escapes() -> None:
    text = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "30 22 0:25 / /mnt/with\\040space rw shared:1 - tmpfs t rw\n"
        "short line\n"
    )
    assert host_files.mount_points(text) == ["/", "/mnt/with space"]


def test_settings_of_a_prefix(tmp_path: Path) -> None:
    write(tmp_path / "pip.conf", "index-url = https://u:p@mirror.test/\n")
    write(tmp_path / "etc/npmrc", "registry=https://registry.test/\n")
    write(tmp_path / ".npmrc", "registry=https://registry.test/\n", mode=0o600)
    assert host_files.settings_to_mask(str(tmp_path)) == [
        str(tmp_path / "pip.conf"),
        str(tmp_path / ".npmrc"),
    ]


def test_settings_of_a_prefix_are_masked_through_links(tmp_path: Path) -> None:
    write(tmp_path / "conf/pip.conf", "index-url = https://u:p@mirror.test/\n")
    (tmp_path / "pip.conf").symlink_to("conf/pip.conf")
    write(tmp_path / ".condarc", "channels: [https://u:p@conda.test/]\n")
    write(tmp_path / "condarc", "channels: [defaults]\n")
    masked = settings_to_mask(str(tmp_path))
    assert sorted(masked) == sorted(map(str, (tmp_path / "conf/pip.conf", tmp_path / ".condarc")))
