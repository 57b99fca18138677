"""Which tools of a user's home a box is shown, and which PATH it gets."""

import posixpath
from collections.abc import Mapping

import pytest

from box_policy.sandbox.namespaces.toolchains import SYSTEM_PATH, Toolchains, find_toolchains

HOME = "/home/ada"
SYSTEM = ":".join(SYSTEM_PATH)


class FakeFiles:
    """A file system of absolute paths: text for a file, "-> target" for a link."""

    def __init__(self, content: Mapping[str, str]) -> None:
        self.content = dict(content)

    def resolve(self, path: str) -> str:
        for _ in range(40):
            parts = path.split("/")
            for count in range(2, len(parts) + 1):
                head = "/".join(parts[:count])
                target = self.link_target(head)
                if target is not None:
                    joined = posixpath.join(posixpath.dirname(head), target, *parts[count:])
                    path = posixpath.normpath(joined)
                    break
            else:
                return path
        return path

    def link_target(self, path: str) -> str | None:
        text = self.content.get(path, "")
        return text[3:] if text.startswith("-> ") else None

    def is_file(self, path: str) -> bool:
        return self.resolve(path) in self.content

    def is_directory(self, path: str) -> bool:
        return any(name.startswith(self.resolve(path) + "/") for name in self.content)

    def names(self, directory: str) -> list[str]:
        prefix = self.resolve(directory) + "/"
        return sorted({n[len(prefix) :].split("/")[0] for n in self.content if n.startswith(prefix)})

    def read(self, path: str) -> str:
        return self.content.get(self.resolve(path), "")


def installation(prefix: str, version: str = "3.12") -> dict[str, str]:
    return {
        f"{prefix}/bin/python{version}": "",
        f"{prefix}/bin/python": f"-> python{version}",
        f"{prefix}/bin/python3": f"-> python{version}",
        f"{prefix}/lib/python{version}/os.py": "",
    }


def environment(prefix: str, base: str) -> dict[str, str]:
    return {
        f"{prefix}/pyvenv.cfg": f"home = {base}/bin\nversion = 3.12.1\n",
        f"{prefix}/bin/python": f"-> {base}/bin/python3.12",
        f"{prefix}/bin/pip": "",
        f"{prefix}/lib/python3.12/site-packages/pip/__init__.py": "",
    }


def find(path: str, *content: Mapping[str, str], home: str = HOME) -> Toolchains:
    merged = {name: text for part in content for name, text in part.items()}
    return find_toolchains({"PATH": path, "HOME": home}, FakeFiles(merged))


def shown(found: Toolchains) -> set[str]:
    return {str(path) for path in found.read_only}


def test_system_directories_need_nothing() -> None:
    found = find("/usr/local/bin:/usr/bin:/opt/tool/bin")
    assert found.read_only == ()
    assert found.path.startswith("/usr/local/bin:/usr/bin:/opt/tool/bin:")


def test_the_systems_own_directories_are_always_on_path() -> None:
    assert find("").path == SYSTEM


@pytest.mark.parametrize("entry", ["bin", ".", "./venv/bin", "~/bin"])
def test_relative_entries_are_dropped(entry: str) -> None:
    assert find(entry) == Toolchains((), SYSTEM, ())


def test_a_virtual_environment_of_the_systems_python() -> None:
    venv = f"{HOME}/project/.venv"
    found = find(f"{venv}/bin:/usr/bin", environment(venv, "/usr"))
    assert shown(found) == {venv}
    assert found.path.startswith(f"{venv}/bin:/usr/bin:")


def test_a_virtual_environment_of_an_installation_in_the_home() -> None:
    venv, base = f"{HOME}/project/.venv", f"{HOME}/.pyenv/versions/3.12.1"
    found = find(f"{venv}/bin", environment(venv, base), installation(base))
    assert shown(found) == {venv, base}


def test_the_link_counts_where_the_settings_lie() -> None:
    venv, base = f"{HOME}/v", f"{HOME}/.pyenv/versions/3.12.1"
    content = environment(venv, base) | installation(base) | {f"{venv}/pyvenv.cfg": "home = /gone/bin\n"}
    assert shown(find(f"{venv}/bin", content)) == {venv, base}


def test_each_step_of_a_chain_of_links_is_shown() -> None:
    # uv names its installations by a link to the exact version.
    root = f"{HOME}/.local/share/uv/python"
    venv, alias, real = f"{HOME}/p/.venv", f"{root}/cpython-3.12", f"{root}/cpython-3.12.4"
    content = environment(venv, alias) | installation(real) | {alias: "-> cpython-3.12.4"}
    assert shown(find(f"{venv}/bin", content)) == {venv, alias, real}


def test_a_settings_file_can_name_no_directory_that_is_no_installation() -> None:
    venv = f"{HOME}/v"
    content = environment(venv, HOME) | {
        f"{venv}/pyvenv.cfg": f"home = {HOME}/.ssh\n",
        f"{HOME}/.ssh/id_rsa": "",
    }
    assert shown(find(f"{venv}/bin", content)) == {venv}


def test_pyenv() -> None:
    root = f"{HOME}/.pyenv"
    content = installation(f"{root}/versions/3.11.7", "3.11") | installation(f"{root}/versions/3.12.1")
    content |= {
        f"{root}/libexec/pyenv": "",
        f"{root}/bin/pyenv": "-> ../libexec/pyenv",
        f"{root}/shims/python": "",
        f"{root}/version": "3.12.1\n",
        f"{root}/cache/secret": "",
        f"{root}/versions/notes.txt": "",
    }
    expected = {
        *(f"{root}/{part}" for part in ("bin", "libexec", "shims", "version")),
        f"{root}/versions/3.11.7",
        f"{root}/versions/3.12.1",
    }
    found = find(f"{root}/shims:{root}/bin:/usr/bin", content)
    assert shown(found) == expected
    assert found.path.startswith(f"{root}/shims:{root}/bin:/usr/bin")


@pytest.mark.parametrize(
    "prefix",
    [
        f"{HOME}/.nvm/versions/node/v22.1.0",
        f"{HOME}/.local/share/fnm/node-versions/v22.1.0/installation",
        f"{HOME}/.asdf/installs/nodejs/22.1.0",
    ],
)
def test_node_of_a_version_manager(prefix: str) -> None:
    content = {f"{prefix}/bin/node": "", f"{prefix}/lib/node_modules/npm/package.json": ""}
    assert shown(find(f"{prefix}/bin", content)) == {prefix}


def test_conda() -> None:
    prefix = f"{HOME}/miniconda3/envs/work"
    content = {f"{prefix}/bin/python": "", f"{prefix}/conda-meta/history": ""}
    assert shown(find(f"{prefix}/bin", content)) == {prefix}


@pytest.mark.parametrize("prefix", ["/venv", "/app/.venv", "/tmp/ci/venv"])
def test_virtual_environments_outside_homes(prefix: str) -> None:
    assert shown(find(f"{prefix}/bin", environment(prefix, "/usr"))) == {prefix}


@pytest.mark.parametrize(
    "prefix",
    [
        HOME,
        "/home",
        "/root",
        "/home/bob",
        f"{HOME}/.local",
        f"{HOME}/.cargo",
        "/root/.local",
        "/home/bob/.local",
        "/proc/self/root",
        "/run/user/1000/venv",
        "/workspace/.venv",
    ],
)
@pytest.mark.parametrize(
    "make", [lambda p: environment(p, "/usr"), installation], ids=["venv", "installation"]
)
def test_what_is_never_shown(prefix: str, make: object) -> None:
    assert callable(make)
    found = find(f"{prefix}/bin:/usr/bin", make(prefix))
    assert (shown(found), found.left_out) == (set(), (f"{prefix}/bin",))
    assert f"{prefix}/bin" not in found.path.split(":")


@pytest.mark.parametrize("name", [".env", ".ssh/id_rsa", ".netrc", ".aws/credentials", ".git-credentials"])
def test_an_installation_among_credentials_is_not_shown(name: str) -> None:
    # `python -m venv .` in a project makes the project itself the installation.
    prefix = f"{HOME}/project"
    content = environment(prefix, "/usr") | {f"{prefix}/{name}": "secret"}
    assert shown(find(f"{prefix}/bin", content)) == set()


@pytest.mark.parametrize(
    "directory", [f"{HOME}/bin", f"{HOME}/.local/bin", f"{HOME}/.cargo/bin", "/srv/tools/bin"]
)
def test_directories_of_mere_programs_are_left_out(directory: str) -> None:
    content = {f"{directory}/tool": "", f"{HOME}/.local/lib/python3.12/site-packages/x.py": ""}
    found = find(f"{directory}:/usr/bin", content)
    assert (shown(found), found.left_out) == (set(), (directory,))


def test_a_home_behind_a_link_is_a_home() -> None:
    content = environment("/data/ada", "/usr") | {HOME: "-> /data/ada"}
    assert shown(find("/data/ada/bin", content)) == set()


def test_links_that_lead_in_circles() -> None:
    venv = f"{HOME}/v"
    content = {f"{venv}/pyvenv.cfg": "", f"{venv}/bin/python": "-> python"}
    assert shown(find(f"{venv}/bin", content)) == {venv}


def test_an_entry_given_twice_is_kept_once() -> None:
    assert find("/usr/bin:/usr/bin/:/usr/bin").path.split(":").count("/usr/bin") == 1
