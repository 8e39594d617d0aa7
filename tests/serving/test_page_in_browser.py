"""The page in headless Chromium: what a visitor sees and does. Needs Playwright and Debian's `chromium`."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tests.serving.page_live import Talkative, live_page

from medmvl.imaging import Volume
from medmvl.phantoms import draw_patient, save_nifti, write_dicom_radiograph, write_dicom_series
from medmvl.processing.stored_prompts import Prompt, StoredPrompts, TaskPrompts
from medmvl.serving.page.settings import PageSettings
from medmvl.serving.page.study import save_ras

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed (apt-get install chromium)", allow_module_level=True)

PHANTOM_SIZE = (12, 48, 48)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Software rendering: there is no graphics card where tests run.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--enable-unsafe-swiftshader"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(model_folder):
    with live_page(model_folder, settings=PageSettings(new_tokens=24)) as (page, address):
        yield page, address


@pytest.fixture
def open_page(browser, served):
    """Return a function that opens the page in a new context; afterwards nothing was asked of another host, and no script failed."""
    contexts, asked, failures = [], [], []

    def opened(query: str = "", width: int = 1400, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US")
        context.set_default_timeout(90_000)  # the machine may be busy
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
        tab.goto(served[1] + query)
        tab.wait_for_selector("body[data-ready]")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert all(url.startswith((served[1], "data:", "blob:")) for url in asked), asked
    # The browser writes a refusal (400, 409) as a console error; the page shows it.
    assert not [line for line in failures if "Failed to load resource" not in line]


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    save_nifti(path, draw_patient(0, 0, size=PHANTOM_SIZE, radiograph_size=64))
    return path


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """A volume with one bright corner: the patient's left, front, head."""
    array = np.full((20, 30, 40), -900, dtype=np.int16)  # (z, y, x) in the axial view: feet, front, right first
    array[12:, 2:12, 28:] = 1200
    volume = Volume.from_array(array, spacing=(3.0, 1.5, 1.0), units="HU", orientation="SPL").to_orientation("RAS")
    path = tmp_path_factory.mktemp("marked") / "marked.nii"
    save_ras(volume.array, volume.affine, path)
    return path


def until(tab, expression: str, seconds: float = 30) -> None:
    """Wait until an expression is true; Playwright's own waiting needs eval, which the policy forbids."""
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(30)


def load(tab, *files: Path) -> None:
    tab.set_input_files("#files", [str(file) for file in files])
    tab.wait_for_selector(".view")
    until(tab, "!document.body.classList.contains('busy')")
    tab.wait_for_timeout(300)


def picture(tab, selector: str = ".view") -> np.ndarray:
    """Return what is on the screen, (H, W, 3) uint8, without letters and lines."""
    tab.evaluate("document.querySelectorAll('.marks').forEach((one) => (one.style.visibility = 'hidden'))")
    shot = tab.locator(selector).first.screenshot()
    tab.evaluate("document.querySelectorAll('.marks').forEach((one) => (one.style.visibility = ''))")
    return np.asarray(PIL.Image.open(io.BytesIO(shot)).convert("RGB"))[8:-8, 8:-8]  # without the round corners


def label(tab, plane: str = "axial") -> str:
    return tab.locator(f"text[data-plane={plane}]").first.text_content()


def ask(tab, text: str) -> str:
    """Ask, wait for the answer, and return its text."""
    count = tab.locator(".turn").count()
    tab.fill("#question", text)
    tab.press("#question", "Enter")
    tab.locator(".turn").nth(count).locator(".answer:not(.streaming)").first.wait_for()
    return tab.locator(".turn").nth(count).locator(".answer").first.text_content()


def exported(tab) -> dict:
    with tab.expect_download() as saved:
        tab.click("#export-json")
    return json.loads(Path(saved.value.path()).read_text())


def test_radiograph_has_side_letters(open_page, tmp_path):
    radiograph = write_dicom_radiograph(tmp_path / "chest.dcm", draw_patient(0, 0, radiograph_size=64))
    tab = open_page()
    load(tab, radiograph)
    edges = {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    for edge, letter in edges.items():
        assert tab.locator(f"text[data-side=image-{edge}]").text_content() == letter
    places = {edge: tab.locator(f"text[data-side=image-{edge}]").bounding_box() for edge in edges}
    assert places["left"]["x"] < places["top"]["x"] < places["right"]["x"]
    assert places["top"]["y"] < places["left"]["y"] < places["bottom"]["y"]
    if pictures := os.environ.get("MEDMVL_PAGE_PICTURES"):
        tab.screenshot(path=Path(pictures) / "side-letters.png")


def test_withheld_answer_is_reported_in_both_languages(open_page, served, media, monkeypatch):
    monkeypatch.setattr(served[0].asking, "_settings", PageSettings(new_tokens=4, abstain_below=1.0))
    tab = open_page()
    load(tab, media / "a.png")
    assert "is below the threshold of 100 %" in ask(tab, "What is seen?")
    assert tab.locator(".explain").count() == 0
    if pictures := os.environ.get("MEDMVL_PAGE_PICTURES"):
        tab.screenshot(path=Path(pictures) / "withheld.png")
    tab.select_option("#language", "zh")
    until(tab, "document.querySelector('#send').textContent === '提问'")
    assert "低于阈值 100 %" in ask(tab, "What is seen?")


def test_no_probability_is_rounded_to_certainty(open_page, media, monkeypatch):
    monkeypatch.setattr("medmvl.serving.page.models.PageModel.chances", lambda *_: {"Yes": 0.99997, "No": 0.00003})
    tab = open_page()
    load(tab, media / "a.png")
    tab.fill("#options", "Yes | No")
    ask(tab, "Is there an effusion?")
    assert tab.locator(".chance").all_text_contents() == ["> 99.9 %", "< 0.1 %"]


@pytest.mark.parametrize("viewer", ["niivue", "canvas"])
def test_patients_left_is_on_the_right_of_the_screen(open_page, marked, viewer):
    tab = open_page(f"?viewer={viewer}")
    load(tab, marked)
    tab.select_option("#preset", "bone")
    # Into the bright part: its middle in shares (right, front, head) of the volume.
    tab.locator(".view").press("ArrowUp")
    for _ in range(5):
        tab.keyboard.press("ArrowUp")
    tab.wait_for_timeout(500)
    shown = picture(tab)
    height, width = shown.shape[:2]
    axial = shown[:, : round(0.64 * width)].mean(2)  # the large tile
    rows, columns = np.nonzero(axial > 180)
    assert len(rows) > 500, "the canvas is blank"
    assert columns.mean() > axial.shape[1] / 2  # left of the patient: right of the screen
    assert rows.mean() < height / 2  # front: top
    assert tab.locator("text[data-side=axial-left]").text_content() == "R"
    assert tab.locator("text[data-side=axial-right]").text_content() == "L"
    assert tab.locator("text[data-side=sagittal-left]").text_content() == "A"
    assert label(tab) == "Axial 17/20"


def test_viewers_draw_the_same_places(open_page, marked):
    shots = []
    for viewer in ("niivue", "canvas"):
        tab = open_page(f"?viewer={viewer}")
        load(tab, marked)
        tab.select_option("#preset", "bone")
        for _ in range(2):
            tab.locator(".view").press("ArrowUp")
        tab.wait_for_timeout(800)
        before = picture(tab).mean(2)
        for _ in range(2):
            tab.keyboard.press("+")
        tab.wait_for_timeout(800)
        shots.append((before, picture(tab).mean(2)))
    (niivue, zoomed), (canvas, canvas_zoomed) = shots
    # Zoomed, NiiVue draws where the whole slice was, the canvas in the whole tile.
    drawn = zoomed > 5
    for ours, theirs in ((canvas > 150, niivue > 150), ((canvas_zoomed > 150) & drawn, zoomed > 150)):
        assert theirs.sum() > 1000
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9


def test_no_slice_shines_through_its_neighbor(open_page, tmp_path):
    array = np.full((8, 24, 24), -900, dtype=np.int16)
    array[3, 8:16, 8:16] = 1200  # slice 4 only; the crosshair begins between slices 4 and 5
    volume = Volume.from_array(array, spacing=(3.0, 1.0, 1.0), units="HU", orientation="SPL").to_orientation("RAS")
    save_ras(volume.array, volume.affine, tmp_path / "slice.nii")
    for viewer in ("niivue", "canvas"):
        tab = open_page(f"?viewer={viewer}")
        load(tab, tmp_path / "slice.nii")
        tab.select_option("#preset", "bone")
        tab.click("#single")
        tab.wait_for_timeout(800)
        assert label(tab) == "Axial 5/8"
        assert picture(tab).max() < 60
        tab.locator(".view").press("ArrowDown")
        tab.wait_for_timeout(800)
        assert label(tab) == "Axial 4/8"
        assert picture(tab).max() > 200


def test_heat_map_lies_over_the_picture(open_page, served, ct, monkeypatch):
    # A random model hardly depends on the picture; else its map would be too faint to see.
    monkeypatch.setattr("medmvl.inference.evidence.result.LEAST_SCALE", 1e-9)
    tab = open_page()
    load(tab, ct)
    tab.fill("#question", "Is there an effusion?")
    tab.fill("#options", "Yes | No")
    tab.press("#question", "Enter")
    tab.locator(".explain").click()
    before = picture(tab).astype(int)
    tab.locator(".occlusion").click()
    tab.locator(".explanation .note div").first.wait_for()
    tab.wait_for_timeout(500)
    shown = picture(tab).astype(int)
    colored = np.abs(shown[..., 0] - shown[..., 2]) > 40
    assert colored.sum() > 200
    assert (np.abs(before[..., 0] - before[..., 2]) > 40).sum() == 0
    assert tab.locator("rect.bar").count() == PHANTOM_SIZE[0]
    bars = tab.locator("svg.bars").bounding_box()
    tab.mouse.click(bars["x"] + bars["width"] * 2.5 / PHANTOM_SIZE[0], bars["y"] + 20)
    tab.wait_for_timeout(300)
    assert label(tab) == f"Axial 3/{PHANTOM_SIZE[0]}"
    tab.select_option("#language", "zh")
    until(tab, "document.querySelector('#heat button').textContent === '隐藏'")
    assert label(tab) == f"轴位 3/{PHANTOM_SIZE[0]}"
    assert [("heat_map" in one, one["slice"]) for one in exported(tab)["key_images"]] == [(True, 3)]
    tab.locator("#heat input").fill("0")  # a map that cannot be seen is not taken away
    assert ["heat_map" in one for one in exported(tab)["key_images"]] == [False]
    tab.click("#mark")
    tab.locator("#heat input").fill("0.5")
    assert ["heat_map" in one for one in exported(tab)["key_images"]] == [False, True]
    tab.click("#beside-model")
    until(tab, "document.querySelectorAll('text[data-plane=axial]').length === 2")
    tab.click("#clear")
    until(tab, "document.querySelector('#heat').hidden")


def test_wheel_window_and_crosshair(open_page, marked):
    tab = open_page("?viewer=canvas")
    load(tab, marked)
    view = tab.locator(".view")
    view.hover(position={"x": 200, "y": 300})
    before = label(tab)
    tab.mouse.wheel(0, -100)
    tab.wait_for_timeout(200)
    assert label(tab) != before
    view.click(position={"x": 420, "y": 260})
    tab.wait_for_timeout(200)
    assert "HU" in tab.text_content("#hover")
    assert "mm" in tab.text_content("#hover")
    crossed = label(tab, "sagittal")
    view.click(position={"x": 150, "y": 260})
    tab.wait_for_timeout(200)
    assert label(tab, "sagittal") != crossed  # linked
    window = tab.text_content("#window-text")
    tab.mouse.move(*center(view))
    tab.mouse.down(button="right")
    tab.mouse.move(*[one + 80 for one in center(view)], steps=4)
    tab.mouse.up(button="right")
    assert tab.text_content("#window-text") != window
    assert tab.input_value("#preset") == "custom"
    tab.select_option("#preset", "lung")
    assert tab.text_content("#window-text") == "-1350 … 150"
    levels = picture(tab)
    tab.click("#invert")
    tab.wait_for_timeout(200)
    assert abs(picture(tab).mean() - levels.mean()) > 20
    tab.keyboard.press("2")
    tab.wait_for_timeout(200)


def test_image_keeps_its_place_under_the_pointer(open_page, media):
    tab = open_page()
    load(tab, media / "a.png")
    x, y = center(tab.locator(".view"))
    y += 7  # not on the edge between two of the 40 rows
    tab.mouse.move(x, y)
    place = tab.text_content("#hover").split("   ")[1]
    tab.mouse.wheel(0, -100)
    tab.mouse.move(x, y)
    tab.mouse.wheel(0, -100)
    tab.mouse.move(x + 1, y)
    assert tab.text_content("#hover").split("   ")[1] == place
    tab.mouse.down()
    tab.mouse.move(x + 61, y - 40, steps=4)
    tab.mouse.up()
    tab.mouse.move(x + 60, y - 40)
    assert tab.text_content("#hover").split("   ")[1] == place
    tab.keyboard.press("0")
    tab.mouse.move(x, y)
    assert tab.text_content("#hover").split("   ")[1] == place


def center(locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 3, box["y"] + box["height"] / 2


def test_conversation_about_a_zip_of_dicom_files(open_page, served, tmp_path):
    write_dicom_series(tmp_path / "series", draw_patient(0, 0, size=PHANTOM_SIZE))
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in (tmp_path / "series").rglob("*.dcm"):
            archive.write(file, file.name)
    tab = open_page()
    load(tab, tmp_path / "series.zip")
    with Talkative(served[0]):
        tab.fill("#question", "Is there a nodule?")
        tab.press("#question", "Enter")
        until(tab, "document.querySelector('.answer.streaming')?.textContent.includes('nodule')")  # it streams
        tab.locator(".answer:not(.streaming)").first.wait_for()
        assert "nodule" in ask(tab, "And on the left?")
        assert tab.locator(".turn").count() == 2
        tab.click("#regenerate")
        until(tab, "!document.querySelector('#regenerate').disabled")
        assert tab.locator(".turn").count() == 2
    tab.fill("#question", "Is there an effusion?")
    tab.fill("#options", "Yes | No")
    tab.press("#question", "Enter")
    tab.locator(".chances").wait_for()
    found = exported(tab)
    assert found["turns"][0]["text"] == "Is there a nodule?"
    assert len(found["turns"]) == 3
    assert found["key_images"][0]["plane"] == "axial"
    with tab.expect_download() as saved:
        tab.click("#export-pdf")
    assert Path(saved.value.path()).read_bytes().startswith(b"%PDF")
    (tmp_path / "broken.nii").write_bytes(b"no volume")
    tab.set_input_files("#files", str(tmp_path / "broken.nii"))
    tab.locator("#opening-question").wait_for()
    assert "broken.nii" in tab.text_content("#question-text")
    assert tab.locator(".turn").count() == 0
    assert tab.locator(".view").count() == 0
    tab.fill("#question", "And now?")
    tab.press("#question", "Enter")
    assert "No picture is open" in tab.locator(".message.error").first.text_content()
    page = served[0]
    folders = [session.folder for session in page.sessions._open.values()]
    tab.click("#clear")
    end = time.monotonic() + 10
    while [file for folder in folders for file in folder.rglob("*") if file.is_file()]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_answer_can_be_stopped(open_page, served, ct, monkeypatch):
    monkeypatch.setattr(served[0].asking, "_settings", PageSettings(new_tokens=400))
    tab = open_page()
    load(tab, ct)
    with Talkative(served[0]):
        tab.fill("#question", "Is there a nodule?")
        tab.press("#question", "Enter")
        until(tab, "document.querySelector('.answer.streaming')?.textContent.includes('nodule')")
        tab.click("#stop")
        until(tab, "document.querySelector('.note').textContent === 'Stopped'")


def test_boxes_of_an_answer_are_on_the_right_side_of_the_image(open_page, served, media, monkeypatch):
    monkeypatch.setattr(
        "medmvl.serving.page.models.PageModel.final", lambda *_: "There: {<60><10><90><40>} and {<5><50><20><95>}."
    )
    tab = open_page()
    load(tab, media / "a.png")
    ask(tab, "Where is the nodule?")
    image = tab.locator(".view").bounding_box()
    boxes = [tab.locator(f"rect[data-box='{number}']").bounding_box() for number in (1, 2)]
    width = image["height"] * 48 / 40  # the image fills the view's height
    left = image["x"] + (image["width"] - width) / 2
    assert boxes[0]["x"] == pytest.approx(left + 0.6 * width, abs=4)
    assert boxes[0]["y"] == pytest.approx(image["y"] + 0.1 * image["height"], abs=4)
    assert boxes[1]["x"] == pytest.approx(left + 0.05 * width, abs=4)
    tab.locator("rect[data-box='2']").dispatch_event("pointerdown")
    tab.locator("rect[data-box='2'].chosen").wait_for()  # drawn with the next frame
    ask(tab, "Where is the other one?")
    assert tab.locator(".box-chip").all_text_contents() == ["▢ 1", "▢ 2", "▣ 3", "▣ 4"]
    tab.locator(".box-chip").nth(0).click()
    tab.locator("rect[data-box='1']").wait_for()
    tab.locator(".box-chip").nth(2).click()
    until(tab, "[...document.querySelectorAll('rect[data-box]')].map((one) => one.dataset.box).join() === '1,4'")
    tab.click("#regenerate")
    until(tab, "!document.querySelector('#regenerate').disabled")
    assert tab.locator(".box-chip").all_text_contents() == ["▢ 1", "▢ 2", "▣ 3", "▣ 4"]
    assert tab.locator(".confidence").count() == 0


def test_question_is_asked_on_its_own_unless_it_is_a_follow_up(open_page, served, media, monkeypatch):
    monkeypatch.setattr("medmvl.serving.page.models.PageModel.final", lambda *_: "Yes")
    tab = open_page()
    load(tab, media / "a.png")
    assert not tab.is_checked("#follow-up")
    for text in ("Is there a nodule?", "Is there an effusion?"):
        ask(tab, text)
    assert tab.locator(".confidence").first.text_content().startswith("confidence ")
    assert not any(turn["follow_up"] for turn in exported(tab)["turns"])
    tab.check("#follow-up")
    assert "may mislead" in tab.text_content("#follow-up-note")
    ask(tab, "On the left?")
    assert [turn["follow_up"] for turn in exported(tab)["turns"]] == [False, False, True]
    assert tab.locator(".note").last.text_content().startswith("Follow-up")


def test_what_the_model_sees_is_shown_beside(open_page, ct):
    tab = open_page()
    load(tab, ct)
    tab.click("#beside-model")
    until(tab, "document.querySelectorAll('text[data-plane=axial]').length === 2")
    sides = tab.locator(".view")
    places = [tab.locator(".view").nth(number) for number in (0, 1)]
    assert sides.count() == 2
    labels = [place.locator("text[data-plane=axial]").text_content() for place in places]
    places[0].press("ArrowUp")
    tab.wait_for_timeout(300)
    moved = [place.locator("text[data-plane=axial]").text_content() for place in places]
    assert moved[0] != labels[0]


def test_language_and_theme_switch(open_page, ct):
    tab = open_page()
    load(tab, ct)
    ask(tab, "Is there a nodule?")
    for key in ("PageUp", "+", "+"):
        tab.locator(".view").press(key)
    tab.wait_for_timeout(300)
    place, seen, turn = label(tab).split()[-1], picture(tab), tab.text_content(".turn")
    tab.select_option("#language", "zh")
    until(tab, "document.querySelector('#send').textContent === '提问'")
    tab.wait_for_timeout(300)
    assert label(tab) == f"轴位 {place}"
    assert np.array_equal(picture(tab), seen)  # slice, zoom and window stay
    assert tab.text_content(".turn") == turn
    theme = tab.get_attribute("html", "data-theme")
    tab.click("#theme")
    assert tab.get_attribute("html", "data-theme") != theme


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (1024, 768), (820, 1180)])
def test_page_needs_no_scrolling(open_page, ct, width, height):
    tab = open_page(width=width, height=height)
    load(tab, ct)
    sizes = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert sizes[0] <= width
    assert sizes[1] <= height
    assert tab.locator("#send").bounding_box()["y"] + 20 < height


def test_two_tabs_are_two_visitors(open_page, ct):
    first, second = open_page(), open_page()
    load(first, ct)
    assert second.locator(".view").count() == 0


def test_closing_the_tab_ends_the_session(open_page, served, ct):
    before = set(served[0].sessions._open)
    tab = open_page()
    load(tab, ct)
    (token,) = set(served[0].sessions._open) - before
    folder = served[0].sessions._open[token].folder
    tab.close(run_before_unload=True)
    for _ in range(100):
        if not folder.exists():
            break
        time.sleep(0.1)
    assert not folder.exists()


def test_hostile_name_is_text(open_page, media, tmp_path):
    evil = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    shutil.copyfile(media / "a.png", evil)
    tab = open_page()
    load(tab, evil)
    assert "<img src=x" in tab.text_content("#studies")
    assert tab.locator("#studies img").count() == 0
    assert tab.title() != "owned"


@pytest.mark.skipif("MEDMVL_PAGE_MODEL" not in os.environ, reason="MEDMVL_PAGE_MODEL names no quickstart's model")
def test_pictures_of_the_page_for_the_docs(browser, tmp_path):
    """Write page-ct.png and page-radiograph.png into MEDMVL_PAGE_PICTURES; somebody must look at them."""
    out = Path(os.environ.get("MEDMVL_PAGE_PICTURES", tmp_path))
    phantom = draw_patient(0, 3, size=(48, 144, 144), radiograph_size=384)
    save_nifti(tmp_path / "chest.nii.gz", phantom)
    PIL.Image.fromarray(phantom.radiograph).save(tmp_path / "chest.png")
    with live_page(Path(os.environ["MEDMVL_PAGE_MODEL"])) as (_, address):
        for scheme, language, file in (("dark", "en", "chest.nii.gz"), ("light", "zh", "chest.png")):
            context = browser.new_context(
                viewport={"width": 1400, "height": 900},
                color_scheme=scheme,
                locale={"en": "en-US", "zh": "zh-CN"}[language],
            )
            context.set_default_timeout(120_000)
            tab = context.new_page()
            tab.goto(address)
            tab.wait_for_selector("body[data-ready]")
            load(tab, tmp_path / file)
            if file.endswith(".gz"):
                tab.select_option("#preset", "lung")
            ask(tab, "Describe.")
            tab.fill("#question", "Is there a pleural effusion?")
            tab.fill("#options", "Yes | No")
            tab.press("#question", "Enter")
            tab.locator(".chances").wait_for()
            tab.locator(".explain").first.click()
            sentences = tab.locator(".explanation select option").all_text_contents()
            chosen = next((one for one in sentences if one.startswith("Pacemaker")), sentences[-1])
            tab.locator(".explanation select").first.select_option(chosen)
            tab.locator(".occlusion").first.click()
            tab.locator(".explanation .note div").first.wait_for()
            tab.wait_for_timeout(1500)
            name = "page-ct.png" if file.endswith(".gz") else "page-radiograph.png"
            tab.screenshot(path=tmp_path / name)
            shot = PIL.Image.open(tmp_path / name).convert("RGB")
            shot.quantize(256, method=PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE).save(
                out / name, optimize=True
            )
            assert (out / name).stat().st_size < 300_000
            tab.set_viewport_size({"width": 820, "height": 1180})
            tab.wait_for_timeout(800)
            tab.screenshot(path=tmp_path / f"tablet-{name}")
            context.close()


def test_tasks_of_one_name_are_told_apart(browser, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    describe = (Prompt("Describe."),)
    tasks = [("radiograph-captions", "image"), ("ct-captions", "volume"), ("report", "volume")]
    StoredPrompts(tuple(TaskPrompts(*task, describe) for task in tasks), 1, 1).save(folder)
    with live_page(folder, settings=PageSettings(new_tokens=4)) as (_, address):
        tab = browser.new_context(locale="en-US").new_page()
        tab.goto(address)
        tab.wait_for_selector("body[data-ready]")
        assert tab.locator("#tasks .task").all_inner_texts() == ["Describe (image)", "Describe (volume)", "Report"]
        tab.context.close()
