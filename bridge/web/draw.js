// Canvases: sharp on every screen, in the colours of the theme.

/** @type {Map<string, string>} */
const colours = new Map();

/** The value of a token, as in `behind`. @param {string} name */
export function token(name) {
  let value = colours.get(name);
  if (value === undefined) {
    value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    colours.set(name, value);
  }
  return value;
}

/** The theme is another one. */
export const themeChanged = () => colours.clear();

export const SANS = '11px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", system-ui, sans-serif';
export const SANS_BOLD = `600 ${SANS}`;

/**
 * A cleared canvas of the size that it has on the screen; `undefined`: it has none.
 * @param {HTMLCanvasElement} canvas
 */
export function begin(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (width === 0 || height === 0) return undefined;
  const ratio = window.devicePixelRatio || 1;
  const [w, hgt] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== hgt) {
    canvas.width = w;
    canvas.height = hgt;
  }
  const c = canvas.getContext('2d');
  if (!c) return undefined;
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, width, height);
  c.font = SANS;
  c.textAlign = 'left';
  return { c, width, height };
}

/** Times on round moments. @param {number} from @param {number} to @param {number} most */
export function ticks(from, to, most) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800].map((s) => s * 1000);
  const step = steps.find((s) => (to - from) / s <= most) ?? 2592000_000;
  // Days begin where the clock on the wall says so.
  const offset = new Date(from).getTimezoneOffset() * 60_000;
  const all = [];
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= to; at += step) all.push(at);
  return { all, step };
}

/** @param {number} at @param {number} step */
export function tickText(at, step) {
  const d = new Date(at);
  const two = (/** @type {number} */ n) => String(n).padStart(2, '0');
  if (step >= 86400_000) return `${two(d.getDate())}.${two(d.getMonth() + 1)}.`;
  if (step < 60_000) return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  return `${two(d.getHours())}:${two(d.getMinutes())}`;
}

/**
 * Diagonal lines.
 * @param {CanvasRenderingContext2D} c @param {number} x @param {number} y @param {number} w @param {number} hgt @param {string} colour
 */
export function hatch(c, x, y, w, hgt, colour) {
  if (w <= 0) return;
  c.save();
  c.beginPath();
  c.rect(x, y, w, hgt);
  c.clip();
  c.strokeStyle = colour;
  c.lineWidth = 1;
  c.beginPath();
  for (let at = x - hgt; at < x + w; at += 5) {
    c.moveTo(at, y + hgt);
    c.lineTo(at + hgt, y);
  }
  c.stroke();
  c.restore();
}

/** @param {CanvasRenderingContext2D} c @param {number} x @param {number} y @param {number} r @param {string} colour */
export function triangle(c, x, y, r, colour) {
  c.fillStyle = colour;
  c.beginPath();
  c.moveTo(x - r, y);
  c.lineTo(x + r, y);
  c.lineTo(x, y + r + 1);
  c.fill();
}
