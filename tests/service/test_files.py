"""A box's files, through the service: all of them the box's own."""

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.service.conftest import Answer, Server


@pytest.fixture
def box(service: Server) -> str:
    box: str = service.create()["id"]
    return box


def read(service: Server, box: str, path: str, more: str = "") -> Answer:
    return service.ask("GET", f"/{box}/files/read?path={quote(path)}{more}")


def write(service: Server, box: str, path: str, content: str, **more: object) -> Answer:
    return service.ask("POST", f"/{box}/files/write", {"path": path, "content": content, **more})


def listed(service: Server, box: str, folder: str = "") -> Any:
    return service.ask("GET", f"/{box}/files/list?folder={quote(folder)}").ok()["files"]


class TestReadAndWrite:
    def test_what_was_written_is_read(self, service: Server, box: str) -> None:
        write(service, box, "a/b/c.txt", "grüße\n").ok()
        assert read(service, box, "/workspace/home/a/b/c.txt").ok() == {"content": "grüße\n"}
        assert service.run(box, "cat a/b/c.txt")["output"] == "grüße\n"

    def test_bytes(self, service: Server, box: str) -> None:
        content = base64.b64encode(bytes(range(256))).decode()
        write(service, box, "x.bin", content, encoding="base64").ok()
        assert read(service, box, "x.bin", "&encoding=base64").ok() == {"content": content}
        answer = read(service, box, "x.bin")
        assert (answer.status, answer.json["code"]) == (422, "not_text") and "base64" in answer.error

    @pytest.mark.parametrize("content", ["a", "!!!!", "QQ==\n", "Q"])
    def test_what_is_no_base64(self, service: Server, box: str, content: str) -> None:
        assert write(service, box, "x", content, encoding="base64").status == 422
        assert listed(service, box) == []

    def test_half_a_surrogate_pair(self, service: Server, box: str) -> None:
        body = b'{"path": "x", "content": "\\ud800"}'
        headers = {"Content-Type": "application/json"}
        answer = service.ask("POST", f"/{box}/files/write", content=body, headers=headers)
        assert answer.status == 422
        assert listed(service, box) == []

    def test_a_part(self, service: Server, box: str) -> None:
        write(service, box, "x", "0123456789").ok()
        assert read(service, box, "x", "&offset=3&length=4").ok() == {"content": "3456"}
        assert read(service, box, "x", "&offset=8&length=99").ok() == {"content": "89"}
        assert read(service, box, "x", "&offset=0&length=0").ok() == {"content": ""}
        for wrong in ("&length=-1", "&length=8388609", "&offset=x", "&length=1&length=2", "&colour=red"):
            assert read(service, box, "x", wrong).status == 422, wrong

    def test_large(self, service: Server, box: str) -> None:
        content = "0123456789abcdef" * 500_000
        write(service, box, "large", content).ok()
        assert read(service, box, "large").ok() == {"content": content}
        answer = write(service, box, "larger", content * 3)
        assert (answer.status, answer.json["code"]) == (413, "body_too_large")

    def test_too_large_to_read_at_once(self, service: Server, box: str) -> None:
        service.run(box, "truncate -s 40000000 sparse")
        assert read(service, box, "sparse").status == 413
        assert read(service, box, "sparse", "&offset=39999990&length=20").ok() == {"content": "\0" * 10}

    def test_a_full_box(self) -> None:
        with Server("--size", "small:disk=4MiB") as server:
            box = server.create()["id"]
            answer = write(server, box, "x", "y" * 5_000_000)
            assert (answer.status, answer.json["code"]) == (507, "box_full")
            assert listed(server, box) == [], "whole or not at all"


class TestOnlyTheBoxs:
    @pytest.fixture
    def secret(self, tmp_path: Path) -> Path:
        file = tmp_path / "secret"
        file.write_text("the host's")
        file.chmod(0o644)
        return file

    def test_a_host_path_is_the_box_s(self, service: Server, box: str, secret: Path) -> None:
        answer = read(service, box, str(secret))
        assert (answer.status, answer.json["code"]) == (404, "file_unknown")
        write(service, box, str(secret), "the box's").ok()
        assert secret.read_text() == "the host's"
        assert read(service, box, str(secret)).ok() == {"content": "the box's"}

    @pytest.mark.parametrize(
        "up", ["../" * 20, "/workspace/home/" + "../" * 20, "/proc/1/root/", "/proc/self/root/"]
    )
    def test_no_way_up(self, service: Server, box: str, secret: Path, up: str) -> None:
        answer = read(service, box, up + str(secret).lstrip("/"))
        assert answer.status in (403, 404)
        service.ask("POST", f"/{box}/files/remove", {"path": up + str(secret).lstrip("/")})
        assert secret.read_text() == "the host's"

    def test_a_link_leads_no_further(self, service: Server, box: str, secret: Path) -> None:
        service.run(
            box, f"ln -s {secret} link; ln -s / root; ln -s /proc/1/root out; ln -s /proc/self/cwd cwd"
        )
        for path in ("link", f"root/{secret}", f"out/{secret}", f"cwd/../../{secret}"):
            assert read(service, box, path).status in (403, 404), path
        # Through the link, into a directory that the box may have made.
        write(service, box, "link", "the box's")
        write(service, box, f"root{secret}", "the box's")
        assert secret.read_text() == "the host's"

    @pytest.mark.parametrize("path", ["/usr/bin/env", "/etc/passwd", "/etc/resolv.conf", "/bin/x", "/x"])
    def test_what_is_shown_of_the_host_stays(self, service: Server, box: str, path: str) -> None:
        before = Path(path).read_bytes() if Path(path).exists() else None
        assert write(service, box, path, "x").status in (403, 404, 409)
        assert service.ask("POST", f"/{box}/files/remove", {"path": path}).status in (403, 404, 409)
        assert (Path(path).read_bytes() if Path(path).exists() else None) == before

    @pytest.mark.parametrize("path", ["pipe", "/dev/zero", "/dev/tty", "/proc/1/mem", "sock", ".", "loop"])
    def test_nothing_waits_for_what_is_no_file(self, service: Server, box: str, path: str) -> None:
        make = "mkfifo pipe; ln -s loop loop; python3 -c 'import socket; socket.socket(1).bind(\"sock\")'"
        service.run(box, make)
        answer = read(service, box, path, "&length=10")
        assert answer.status in (403, 404, 409), (answer.status, answer.content)
        download = service.ask("GET", f"/{box}/files/download?folder={quote(path)}")
        assert download.status in (403, 404, 409)


class TestDirectories:
    def test_list_and_stat(self, service: Server, box: str) -> None:
        service.run(box, "mkdir d; echo hello > f; ln -s f l; touch -d @1577934245 f")
        assert [(f["name"], f["path"], f["is_dir"]) for f in listed(service, box)] == [
            ("d", "/workspace/home/d", True),
            ("f", "/workspace/home/f", False),
            ("l", "/workspace/home/l", False),
        ]
        assert listed(service, box)[1]["mod_time"] == "2020-01-02T03:04:05Z"
        stat = service.ask("GET", f"/{box}/files/stat?path=f").ok()
        assert (stat["type"], stat["size"], stat["mod_time"]) == ("file", 6, "2020-01-02T03:04:05Z")
        link = service.ask("GET", f"/{box}/files/stat?path=l").ok()
        followed = service.ask("GET", f"/{box}/files/stat?path=l&follow=true").ok()
        assert (link["type"], followed["type"], followed) == ("symlink", "file", stat)
        write(service, box, "f", "HELLO\n").ok()
        assert service.ask("GET", f"/{box}/files/stat?path=f").ok()["version"] != stat["version"]

    def test_odd_names_and_times(self, service: Server, box: str) -> None:
        service.run(box, "touch -d @-1 \"$(printf 'a\\nb\\377')\"; touch -d 3000-01-01 später")
        assert [f["name"].encode("utf-8", "surrogateescape") for f in listed(service, box)] == [
            b"a\nb\xff",
            "später".encode(),
        ]
        assert [f["mod_time"][:4] for f in listed(service, box)] == ["1970", "3000"]

    def test_make_move_remove(self, service: Server, box: str) -> None:
        def change(operation: str, **body: object) -> Answer:
            return service.ask("POST", f"/{box}/files/{operation}", body)

        assert change("mkdir", path="a/b").status == 404
        change("mkdir", path="a/b", parents=True).ok()
        assert change("mkdir", path="a").status == 409
        change("mkdir", path="a", parents=True).ok()
        change("rename", **{"from": "a/b", "to": "c"}).ok()
        assert [f["name"] for f in listed(service, box)] == ["a", "c"]
        write(service, box, "c/f", "x").ok()
        assert change("remove", path="c").status == 409
        change("remove", path="c", recursive=True).ok()
        assert change("remove", path="c", recursive=True).status == 404
        assert [f["name"] for f in listed(service, box)] == ["a"]

    def test_too_many_entries(self, service: Server, box: str) -> None:
        service.run(box, "mkdir m; cd m; seq 10001 | xargs touch")
        answer = service.ask("GET", f"/{box}/files/list?folder=m")
        assert (answer.status, answer.json["code"]) == (413, "file_too_large")


class TestUploadAndDownload:
    def test_several(self, service: Server, box: str) -> None:
        large = os.urandom(3_000_000)
        files = [("files", ("a.bin", large)), ("files", ("b", b""))]
        data = {"paths": ["/workspace/home/up/a.bin", "b"]}
        service.ask("POST", f"/{box}/files/upload", data=data, files=files).ok()
        got = service.ask("GET", f"/{box}/files/download?folder=up/a.bin")
        assert (got.status, got.content == large) == (200, True)
        assert service.ask("GET", f"/{box}/files/stat?path=b").ok()["size"] == 0

    def test_as_many_paths_as_files(self, service: Server, box: str) -> None:
        answer = service.ask(
            "POST", f"/{box}/files/upload", data={"paths": ["x", "y"]}, files=[("files", ("x", b"1"))]
        )
        assert (answer.status, answer.json["code"]) == (422, "request_invalid")
        assert listed(service, box) == []

    def test_what_is_not_there(self, service: Server, box: str) -> None:
        answer = service.ask("GET", f"/{box}/files/download?folder=nothing")
        assert (answer.status, answer.json["code"]) == (404, "file_unknown")
        assert service.ask("GET", f"/{box}/files/download").status == 422
