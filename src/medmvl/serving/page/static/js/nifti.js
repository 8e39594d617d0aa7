// The part of NIfTI-1 that the server writes: little-endian, uncompressed, axes towards the patient's right, front and head.

const TYPES = { 2: Uint8Array, 4: Int16Array, 16: Float32Array };

/** Return {dims: [x, y, z], spacing, affine (3 rows of 4), data, buffer} of a NIfTI file. */
export function parseNifti(buffer) {
  const header = new DataView(buffer);
  const dims = [42, 44, 46].map((place) => header.getInt16(place, true));
  const spacing = [80, 84, 88].map((place) => header.getFloat32(place, true));
  const affine = [280, 296, 312].map((row) => [0, 4, 8, 12].map((place) => header.getFloat32(row + place, true)));
  const type = TYPES[header.getInt16(70, true)];
  const start = header.getFloat32(108, true);
  const data = new type(buffer, start, dims[0] * dims[1] * dims[2]);
  return { dims, spacing, affine, data, buffer };
}

/** Return the index (x, y, z) of the voxel that holds a position given in shares of the volume. */
export function voxelAt(volume, frac) {
  return frac.map((share, axis) => Math.min(Math.max(Math.floor(share * volume.dims[axis]), 0), volume.dims[axis] - 1));
}

/** Return the value of the voxel at a position given in shares of the volume. */
export function valueAt(volume, frac) {
  const [x, y, z] = voxelAt(volume, frac);
  return volume.data[x + volume.dims[0] * (y + volume.dims[1] * z)];
}

/** Return the patient position in mm (right, front, head) of a position given in shares of the volume. */
export function mmOf(volume, frac) {
  const index = frac.map((share, axis) => share * volume.dims[axis] - 0.5);
  return volume.affine.map((row) => row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3]);
}

/** Return the position in shares of the volume of a patient position in mm. */
export function fracOf(volume, mm) {
  const [a, b, c] = volume.affine;
  const [p, q, r] = [mm[0] - a[3], mm[1] - b[3], mm[2] - c[3]];
  const determinant =
    a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
  const index = [
    (p * (b[1] * c[2] - b[2] * c[1]) - a[1] * (q * c[2] - b[2] * r) + a[2] * (q * c[1] - b[1] * r)) / determinant,
    (a[0] * (q * c[2] - b[2] * r) - p * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * r - q * c[0])) / determinant,
    (a[0] * (b[1] * r - q * c[1]) - a[1] * (b[0] * r - q * c[0]) + p * (b[0] * c[1] - b[1] * c[0])) / determinant,
  ];
  return index.map((value, axis) => (value + 0.5) / volume.dims[axis]);
}
