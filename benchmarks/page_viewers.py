"""Time of the page's two ways to draw a volume, without a graphics card: NiiVue in WebGL by software, and a plain canvas.

    python benchmarks/page_viewers.py --model FOLDER [--out FILE.md]

Needs Playwright and Debian's `chromium`. Starts `medmvl demo` on a free port and measures in its page, in headless Chromium with
software rendering: loading, a change of the window, and a step to the next slice of three planes, each until the pixels can be read.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZES = ((24, 72, 72), (100, 256, 256))

MEASURE = """async ([viewer, depth, rows, columns]) => {
  const { CanvasRenderer } = await import("/page/js/canvas_renderer.js");
  const { NiivueRenderer } = await import("/page/js/niivue_renderer.js");
  const { parseNifti } = await import("/page/js/nifti.js");
  const { PLANES, fit } = await import("/page/js/planes.js");
  // A NIfTI-1 file of int16 values.
  const buffer = new ArrayBuffer(352 + 2 * depth * rows * columns);
  const header = new DataView(buffer);
  header.setInt32(0, 348, true);
  [3, columns, rows, depth, 1, 1, 1, 1].forEach((one, place) => header.setInt16(40 + 2 * place, one, true));
  header.setInt16(70, 4, true);
  header.setInt16(72, 16, true);
  [1, 1, 1, 2, 1, 1, 1, 1].forEach((one, place) => header.setFloat32(76 + 4 * place, one, true));
  header.setFloat32(108, 352, true);
  header.setFloat32(112, 1, true);
  header.setUint8(123, 2);
  header.setInt16(254, 1, true);
  [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]].flat().forEach((one, place) => header.setFloat32(280 + 4 * place, one, true));
  [0x6e, 0x2b, 0x31, 0].forEach((one, place) => header.setUint8(344 + place, one));
  const values = new Int16Array(buffer, 352);
  for (let place = 0; place < values.length; place += 1) values[place] = ((place * 2654435761) >>> 20) - 2000;
  const canvas = document.createElement("canvas");
  const box = document.createElement("div");
  box.append(canvas);
  document.body.replaceChildren(box);
  Object.assign(box.style, { position: "absolute", inset: 0, width: "900px", height: "700px" });
  Object.assign(canvas.style, { width: "900px", height: "700px" });
  const renderer = viewer === "niivue" ? new NiivueRenderer(canvas) : new CanvasRenderer(canvas);
  const volume = parseNifti(buffer);
  const scene = { cross: [0.5, 0.5, 0.5], center: [0.5, 0.5, 0.5], zoom: 1, window: [-1000, 1000], invert: false, opacity: 0 };
  const places = [[0, 0, 570, 700], [580, 0, 320, 345], [580, 350, 320, 345]].map(([x, y, w, h]) => ({ x, y, w, h }));
  scene.tiles = PLANES.map((plane, place) => ({ plane, tile: places[place], rect: fit(plane, volume, places[place]) }));
  const settled = () => {
    const context = viewer === "niivue" ? renderer.nv.gl : renderer.context;
    if (viewer === "niivue") context.readPixels(0, 0, 1, 1, context.RGBA, context.UNSIGNED_BYTE, new Uint8Array(4));
    else context.getImageData(0, 0, 1, 1);
  };
  const time = async (work) => {
    const begun = performance.now();
    await work();
    settled();
    return performance.now() - begun;
  };
  const median = async (work) => {
    const found = [];
    for (let round = 0; round < 5; round += 1) found.push(await time(() => work(round)));
    return found.sort((a, b) => a - b)[2];
  };
  const load = await time(async () => { await renderer.load(volume); renderer.draw(scene); });
  const change = await median((round) => { scene.window = [-1000 + round, 900]; renderer.draw(scene); });
  const step = await median((round) => { scene.cross = [0.5, 0.5, 0.4 + round / depth]; renderer.draw(scene); });
  return [load, change, step];
}"""


def main() -> None:
    """Measure and print (or write) a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, help="Markdown file")
    options = parser.parse_args()
    command = [sys.executable, "-m", "medmvl", "demo", "--model", str(options.model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None, "the page did not start"
            rows = measure(found[0])
        finally:
            process.terminate()
    today = datetime.date.today()
    text = "\n".join(
        [
            f"# The page's two viewers without a graphics card, {today}\n",
            f"`python benchmarks/page_viewers.py --model FOLDER`; {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), "
            f"{platform.machine()}, headless Chromium with SwiftShader. Milliseconds; medians of 5 except loading.\n",
            "| volume (int16) | viewer | loading | change of the window | next slice |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(address: str) -> list[str]:
    """Return a row of the table for each size and viewer."""
    rows = []
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--enable-unsafe-swiftshader"]
        )
        for size in SIZES:
            for viewer in ("niivue", "canvas"):
                tab = browser.new_page(viewport={"width": 920, "height": 720})
                tab.goto(address)
                tab.wait_for_selector("body[data-ready]", timeout=120_000)
                times = tab.evaluate(MEASURE, [viewer, *size])
                rows.append(
                    f"| {'x'.join(map(str, size))} | {viewer} | " + " | ".join(f"{ms:.0f}" for ms in times) + " |"
                )
                tab.close()
        browser.close()
    return rows


if __name__ == "__main__":
    main()
