"""The pictures of the documentation show the console as it is: `make pictures` takes them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.pictures.load import FOLLOWED, followed, impossible
from tests.pictures.pages import DIRECTORY, MOST_BYTES, labels, pictures, recorded, visit
from tests.support.browser import chromium

if TYPE_CHECKING:
    from tests.support.cluster import ClusterUnderTest

pytestmark = pytest.mark.cluster


def test_every_label_of_a_page_is_in_its_picture(disturbed: ClusterUnderTest) -> None:
    disturbed.wait_ready(2)
    disturbed.generate(followed())
    with pytest.raises(Exception, match="idle worker needs"):
        disturbed.generate(impossible())
    with chromium() as browser:
        page = browser.new_page(color_scheme="light")
        url = disturbed.state().console_url
        shown = {picture.name: visit(page, url, picture) for picture in pictures(FOLLOWED)}
    assert shown == recorded(), "what the console shows has changed: `make pictures`"


@pytest.mark.parametrize("name", [*(picture.name for picture in pictures("")), "top"])
def test_pictures_are_small(name: str) -> None:
    file = DIRECTORY / f"{name}.png"
    assert file.stat().st_size <= MOST_BYTES
    with Image.open(file) as image:
        assert image.format == "PNG"


def test_labels_have_no_figures() -> None:
    assert labels(["Promises kept, last 5 min", "Promises kept, last 40 s", " TTFT ", "● 10 min"]) == [
        "Promises kept, last #",
        "TTFT",
        "● #",
    ]
