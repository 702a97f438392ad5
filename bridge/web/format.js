// Elements, and how times, numbers and sizes are written. Unchanged text is never written again, so nothing is laid out for nothing.

/** @typedef {string | number | Node | null | undefined | false} Child */

/**
 * An element. Attributes by name; `class`, `text`, and `onclick`-like listeners too.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, attributes = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false || value === null) continue;
    if (name === 'text') el.textContent = String(value);
    else if (name.startsWith('on')) el.addEventListener(name.slice(2), value);
    else el.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children) if (child || child === 0) el.append(child instanceof Node ? child : String(child));
  return el;
}

/**
 * Writes text if it is another one.
 * @param {Element} el
 * @param {string | number} text
 */
export function set(el, text) {
  const s = String(text);
  if (el.textContent !== s) el.textContent = s;
}

/**
 * Writes an attribute if it is another one; `null` takes it away.
 * @param {Element} el
 * @param {string} name
 * @param {string | number | boolean | null} value
 */
export function attr(el, name, value) {
  if (value === null || value === false) { if (el.hasAttribute(name)) el.removeAttribute(name); return; }
  const s = value === true ? '' : String(value);
  if (el.getAttribute(name) !== s) el.setAttribute(name, s);
}

/** @typedef {{ el: Element, update: (item: any) => void }} Kept */
/** @type {WeakMap<Element, Map<string, Kept>>} */
const kept = new WeakMap();

/**
 * One child per item, in their order. The element of an item that stays is never taken out: a press that began on it ends on it.
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string} key
 * @param {(item: T) => { el: Element, update: (item: T) => void }} make
 */
export function keyed(parent, items, key, make) {
  const before = kept.get(parent) ?? new Map();
  /** @type {Map<string, Kept>} */
  const now = new Map();
  for (const item of items) {
    const k = key(item);
    const one = before.get(k) ?? make(item);
    now.set(k, one);
    one.update(item);
  }
  for (const [k, one] of before) if (now.get(k) !== one) one.el.remove();
  for (const [i, { el }] of [...now.values()].entries()) if (parent.children[i] !== el) parent.insertBefore(el, parent.children[i] ?? null);
  kept.set(parent, now);
}

const two = (/** @type {number} */ n) => String(n).padStart(2, '0');

/** @param {number} ms */
export function clock(ms) {
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

/** @param {number} ms */
export const clockMs = (ms) => `${clock(ms)}.${String(new Date(ms).getMilliseconds()).padStart(3, '0')}`;

/**
 * A time as short as it can be beside now.
 * @param {number} ms
 * @param {number} now
 */
export function when(ms, now) {
  if (Math.abs(now - ms) < 20 * 3600_000) return clock(ms);
  const d = new Date(ms);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
}

/**
 * A length of time in its two largest units.
 * @param {number} ms
 */
export function span(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return m < 10 ? `${m} m ${two(Math.floor(s % 60))} s` : `${m} m`;
  const hours = Math.floor(m / 60);
  if (hours < 48) return `${hours} h ${two(m % 60)} m`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const group = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });

/** @param {number} n */
export const count = (n) => group.format(n);

/** @param {number} n */
export function brief(n) {
  if (n < 10_000) return count(n);
  if (n < 1_000_000) return `${Math.round(n / 1000)}k`;
  return `${(n / 1_000_000).toFixed(1)}M`;
}

/** @param {number} perSecond */
export function rate(perSecond) {
  if (perSecond >= 100) return brief(Math.round(perSecond));
  if (perSecond >= 9.95) return String(Math.round(perSecond));
  if (perSecond === 0) return '0';
  return perSecond >= 0.05 ? perSecond.toFixed(1).replace(/\.0$/, '') : perSecond.toFixed(2);
}

/** @param {number} n */
export function bytes(n) {
  if (n < 1024) return `${n} B`;
  for (const unit of ['KiB', 'MiB', 'GiB']) {
    n /= 1024;
    if (n < 1024 || unit === 'GiB') return `${n < 10 ? n.toFixed(2) : n < 100 ? n.toFixed(1) : Math.round(n)} ${unit}`;
  }
  return '';
}

/** @param {number} us */
export const micros = (us) => (us < 10_000 ? [String(Math.round(us)), 'µs'] : [(us / 1000).toFixed(us < 100_000 ? 1 : 0), 'ms']);

/**
 * The values of an axis, at even distances: with the digits that tell neighbours apart.
 * @param {number[]} all
 */
export function values(all) {
  const texts = all.map(value);
  const step = Math.abs((all[1] ?? 0) - (all[0] ?? 0));
  if (step === 0 || new Set(texts).size === texts.length) return texts;
  const digits = Math.ceil(-Math.log10(step) - 1e-9);
  return all.map((v) => v.toFixed(Math.min(100, Math.max(0, digits))));
}

/**
 * A measured number with no more digits than it says something.
 * @param {number} v
 */
export function value(v) {
  if (!Number.isFinite(v)) return '–';
  if (Number.isInteger(v)) return Math.abs(v) < 1e9 ? String(v) : v.toExponential(3);
  const a = Math.abs(v);
  return a >= 1000 ? v.toFixed(1) : a >= 1 ? v.toFixed(2) : a >= 0.001 ? v.toPrecision(3) : v.toExponential(2);
}

/**
 * At most so many characters, without line ends.
 * @param {string} s
 * @param {number} max
 */
export function line(s, max) {
  const cut = s.length > max ? `${s.slice(0, max)}…` : s;
  // Controls would hide or turn what stands beside them.
  return cut.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '·');
}
