// The scale of entropy: one mapping for tints, legends and charts. Logarithmic above SMALL, so that a threshold of 0.01
// nats can be seen beside an entropy of 2; linear below, so that 0 has a place.

export const SMALL = 0.003, LARGE = 3; // nats
export const TICKS = [0, 0.01, 0.03, 0.1, 0.3, 1, 3];

/** 0 for 0 nats, 1 for LARGE and above. */
export const share = (nats, most = LARGE) => Math.min(1, Math.log1p(Math.max(0, nats) / SMALL) / Math.log1p(most / SMALL));
/** The entropy of a share. */
export const nats = (part, most = LARGE) => SMALL * Math.expm1(part * Math.log1p(most / SMALL));

/** The colours themselves are in the style sheet, mixed in OKLab from `--h`: equal steps look equally far apart. */
export function tint(element, entropy) {
  element.style.setProperty("--h", share(entropy).toFixed(3));
  return element;
}
