// Draws slices with NiiVue on the graphics card. The only module that knows NiiVue, whose API changes in version 1.
//
// NiiVue gets no events: positions, letters, crosshair and boxes are the page's own, see planes.js and volume_view.js.

import { voxelAt } from "./nifti.js";

const SLICE_TYPE = { axial: 0, coronal: 1, sagittal: 2 };

/** Whether this browser draws WebGL2, and whether it does so on a graphics card. */
export function graphics() {
  const context = document.createElement("canvas").getContext("webgl2");
  if (!context) return { webgl: false, card: false };
  const info = context.getExtension("WEBGL_debug_renderer_info");
  const name = info ? context.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
  context.getExtension("WEBGL_lose_context")?.loseContext();
  return { webgl: true, card: !/swiftshader|llvmpipe|software|basic render/i.test(name) };
}

/** Load NiiVue's file; it is 2.3 MB, so it is fetched only when it is used. */
function fetchNiivue() {
  if (window.niivue) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/page/vendor/niivue-0.69.0.umd.js";
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
}

export class NiivueRenderer {
  constructor(canvas) {
    this.canvas = canvas;
  }

  async load(volume) {
    await fetchNiivue();
    this.volume = volume;
    if (!this.nv) {
      this.nv = new window.niivue.Niivue({
        interactive: false, // the page's own mouse and keys
        dragAndDropEnabled: false,
        isRadiologicalConvention: true, // the patient's right at the left edge; the default mirrors
        sagittalNoseLeft: true,
        isOrientationTextVisible: false, // the page writes the letters
        crosshairWidth: 0,
        loadingText: "",
        logLevel: "error",
        backColor: [0, 0, 0, 1],
      });
      await this.nv.attachToCanvas(this.canvas, false);
    }
    for (const old of [...this.nv.volumes]) this.nv.removeVolume(old);
    this.overlay = null;
    this.window = null;
    this.image = await window.niivue.NVImage.new(volume.buffer, "view.nii", "gray", 1);
    this.nv.addVolume(this.image);
  }

  async setOverlay(overlay) {
    if (this.overlay) this.nv.removeVolume(this.overlay);
    this.overlay = null;
    if (overlay) {
      this.overlay = await window.niivue.NVImage.new(overlay.buffer, "heat.nii", "warm", 0.5, null, 0.1, 1);
      this.nv.addVolume(this.overlay);
    }
  }

  draw(scene) {
    const { nv } = this;
    if (!nv || !this.image) return;
    this.applyWindow(scene);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    // The middle of the voxel: between two slices NiiVue would mix them, and a finding of the next slice would shine through.
    nv.scene.crosshairPos = voxelAt(this.volume, scene.cross).map((index, axis) => (index + 0.5) / this.volume.dims[axis]);
    nv.scene.pan2Dxyzmm = this.pan(scene);
    const layout = scene.tiles.map(({ plane, rect }) => ({
      sliceType: SLICE_TYPE[plane],
      position: [rect.x / width, rect.y / height, rect.w / width, rect.h / height],
    }));
    nv.setCustomLayout(layout); // draws
  }

  /** Set gray levels and overlay; this fills the texture anew, which is slow, so it is done only when something changes. */
  applyWindow({ window: [low, high], invert, opacity }) {
    const key = `${low} ${high} ${invert} ${opacity}`;
    if (key === this.window) return;
    this.window = key;
    this.image.cal_min = low;
    this.image.cal_max = high;
    this.image.colormapInvert = Boolean(invert);
    if (this.overlay) this.overlay.opacity = opacity;
    this.nv.updateGLVolume();
  }

  /** NiiVue shows (extent - pan) / zoom in mm; return the pan at which the scene's center is in the middle. */
  pan({ center, zoom }) {
    const middle = this.nv.frac2mm([0.5, 0.5, 0.5]);
    const wanted = this.nv.frac2mm(center);
    return [0, 1, 2].map((axis) => middle[axis] - zoom * wanted[axis]).concat(zoom);
  }

  close() {
    // Browsers allow a few contexts per page; this one is given back at once.
    this.nv?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.nv = this.image = null;
  }
}

