"""Which images boxes may be made of, and how they are written."""

import pytest

from box_policy.control.http.answers import ApiError
from box_policy.service.images import Images, InvalidImageError, check_reference

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "reference",
    [
        "python",
        "python:3.13",
        "docker.io/library/python:3.13-slim",
        f"ghcr.io/owner/a__b/c-d--e@sha256:{HEX}",
        f"python:3.13@sha256:{HEX}",
        "localhost:5000/x:Y_1.2-3",
        "[::1]:5000/x",
        "Registry.Example/x",
        f"sha256:{HEX}",
        HEX,
    ],
)
def test_an_image(reference: str) -> None:
    assert check_reference(reference) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " python",
        "python\n",
        "--privileged",
        "Python",
        "python:",
        "python:-1",
        "a:b:c",
        "a//b",
        "/a",
        "a/",
        "../../etc",
        "a..b",
        "_a",
        "a___b",
        "http://registry.example/x",
        "x@sha256:12",
        "x@",
        "$(id)",
        "pythön",
        "a" * 256,
        "x:" + "t" * 129,
        "a/" * 10_000 + "!",
    ],
)
def test_no_image(text: str) -> None:
    with pytest.raises(InvalidImageError, match="is no image"):
        check_reference(text)


class TestOfAService:
    IMAGES = Images.parse(["python:3.13", "debian:13", "node=node:22"])

    @pytest.mark.parametrize(
        ("runtime", "image", "expected"),
        [
            (None, None, "python:3.13"),
            ("node", None, "node:22"),
            (None, "debian:13", "debian:13"),
            (None, "node:22", "node:22"),
        ],
    )
    def test_what_it_has(self, runtime: str | None, image: str | None, expected: str) -> None:
        programs = self.IMAGES.programs(runtime, image)
        assert (programs.image, programs.path, programs.read_only) == (expected, None, ())

    @pytest.mark.parametrize(
        ("runtime", "image", "code", "said"),
        [
            (None, "debian", "image_refused", "there are debian:13, node:22, python:3.13"),
            (None, "python:3.13@sha256:" + HEX, "image_refused", "none of those"),
            ("python", None, "runtime_missing", "--image python=IMAGE"),
            ("cobol", None, "runtime_missing", "there is no runtime"),
            ("node", "node:22", "request_invalid", "give runtime or image"),
        ],
    )
    def test_what_it_has_not(self, runtime: str | None, image: str | None, code: str, said: str) -> None:
        with pytest.raises(ApiError, match=said) as caught:
            self.IMAGES.programs(runtime, image)
        assert caught.value.code == code

    def test_without_a_default_one_is_to_be_named(self) -> None:
        with pytest.raises(ApiError, match="a runtime: there are node"):
            Images.parse(["node=node:22"]).programs(None, None)

    def test_the_operator_himself_may_name_any(self) -> None:
        assert Images.parse([], allows_any=True).programs(None, "debian:13").image == "debian:13"

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            (["cobol=python:3.13"], "there is no runtime"),
            (["node="], "is no image"),
            ([""], "is no image"),
            (["node=node:22", "node=node:20"], "node:22 and node:20: give one"),
        ],
    )
    def test_what_can_not_be_served(self, settings: list[str], said: str) -> None:
        with pytest.raises(InvalidImageError, match=said):
            Images.parse(settings)
