// What a payload is: JSON, text, CBOR, Sparkplug B, or bytes. Read only, never guessed beyond what the bytes say, and always shown as text.

/** @typedef {import('./client.js').FeedRecord} FeedRecord */
/** @typedef {{ number?: number, state?: string }} Leaf */

const cache = new WeakMap();

/** @param {{ text?: string | null, base64?: string | null }} r @returns {Uint8Array} */
export function bytesOf(r) {
  if (r.text !== undefined && r.text !== null) return new TextEncoder().encode(r.text);
  const raw = atob(r.base64 ?? '');
  return Uint8Array.from(raw, (c) => c.charCodeAt(0));
}

/**
 * Parsed JSON of a whole text payload; `undefined`: it is none.
 * @param {FeedRecord} r
 * @returns {any}
 */
export function json(r) {
  if (cache.has(r)) return cache.get(r);
  let parsed;
  const first = r.text?.trimStart()[0];
  if (r.text !== undefined && first !== undefined && '{["-0123456789tfn'.includes(first)) {
    try { parsed = JSON.parse(r.text); } catch { parsed = undefined; }
  }
  cache.set(r, parsed);
  return parsed;
}

/** A number as it is written: `21.20` and `1e3` are not rewritten, and a long one loses no digits. */
export class Digits {
  /** @param {number} number @param {string} source */
  constructor(number, source) {
    this.number = number;
    this.source = source;
  }

  toString() { return this.source; }
}

/**
 * The same as `json`, with numbers as `Digits` where the browser tells their source.
 * @param {FeedRecord} r
 * @returns {any}
 */
export function written(r) {
  if (json(r) === undefined) return undefined;
  /** @type {any} */
  const keep = (/** @type {string} */ _, /** @type {any} */ v, /** @type {{ source?: string } | undefined} */ context) => (typeof v === 'number' && context?.source ? new Digits(v, context.source) : v);
  return JSON.parse(r.text ?? '', keep);
}

/**
 * Fields of a payload by their paths: as the feed's steps name them.
 * @param {FeedRecord} r
 * @returns {Map<string, Leaf>}
 */
export function fields(r) {
  /** @type {Map<string, Leaf>} */
  const found = new Map();
  const parsed = json(r);
  if (parsed !== undefined) walk(parsed, '', 0, found);
  else if (r.text !== undefined && r.bytes <= 64) found.set('', { state: r.text });
  return found;
}

/** @param {any} v @param {string} name @param {number} depth @param {Map<string, Leaf>} found */
function walk(v, name, depth, found) {
  if (found.size >= 16) return;
  if (typeof v === 'number') found.set(name, { number: v });
  else if (typeof v === 'boolean') found.set(name, { state: String(v) });
  else if (typeof v === 'string') { if (v.length <= 64) found.set(name, { state: v }); }
  else if (v && typeof v === 'object' && !Array.isArray(v) && depth < 3) {
    for (const [key, inner] of Object.entries(v)) walk(inner, name === '' ? key : `${name}.${key}`, depth + 1, found);
  }
}

/**
 * The field that stands for the payload: the first number, else the first state.
 * @param {Map<string, Leaf>} all
 */
export function mainField(all) {
  let state;
  for (const [name, leaf] of all) {
    if (leaf.number !== undefined) return name;
    state ??= name;
  }
  return state;
}

/**
 * One line for a tree or a table.
 * @param {FeedRecord} r
 */
export function short(r) {
  if (r.text !== undefined) return r.text;
  return `${r.bytes} B, ${isSparkplug(r.topic) ? 'Sparkplug B' : 'not text'}`;
}

/** @param {string} topic */
export const isSparkplug = (topic) => topic.startsWith('spBv1.0/');

/** @param {Uint8Array} b */
export function hex(b) {
  const lines = [];
  for (let at = 0; at < b.length; at += 16) {
    const row = [...b.slice(at, at + 16)];
    const codes = row.map((x) => x.toString(16).padStart(2, '0')).join(' ').padEnd(47);
    const text = row.map((x) => (x >= 32 && x < 127 ? String.fromCharCode(x) : '.')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${codes}  ${text}`);
  }
  return lines.join('\n');
}

class Short extends Error {}

/** Takes bytes one after another; whoever asks for more than there is, fails. */
class Reader {
  /** @param {Uint8Array} b */
  constructor(b) { this.b = b; this.at = 0; this.view = new DataView(b.buffer, b.byteOffset, b.byteLength); }
  get left() { return this.b.length - this.at; }
  /** @param {number} n */
  need(n) { if (n < 0 || n > this.left) throw new Short('it ends too early'); const at = this.at; this.at += n; return at; }
  byte() { return this.view.getUint8(this.need(1)); }
  /** @param {number} n */
  take(n) { const at = this.need(n); return this.b.slice(at, at + n); }
  varint() {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const b = this.byte();
      value |= BigInt(b & 0x7f) << shift;
      if (b < 0x80) return value;
    }
    throw new Error('a number that does not end');
  }
}

/**
 * CBOR (RFC 8949) as a value that JSON can show. Throws if it is none, or not all of it.
 * @param {Uint8Array} b
 */
export function cbor(b) {
  const r = new Reader(b);
  const v = item(r, 0);
  if (r.left > 0) throw new Error('something follows');
  return v;
}

/** @param {Reader} r @param {number} depth @returns {any} */
function item(r, depth) {
  if (depth > 16) throw new Error('too deep');
  const head = r.byte();
  const [major, info] = [head >> 5, head & 31];
  if (head === 0xff) return BREAK;
  let n = 0n;
  const open = info === 31;
  if (info < 24) n = BigInt(info);
  else if (info === 24) n = BigInt(r.byte());
  else if (info === 25) { const at = r.need(2); if (major === 7) return half(r.view.getUint16(at)); n = BigInt(r.view.getUint16(at)); }
  else if (info === 26) { const at = r.need(4); if (major === 7) return r.view.getFloat32(at); n = BigInt(r.view.getUint32(at)); }
  else if (info === 27) { const at = r.need(8); if (major === 7) return r.view.getFloat64(at); n = r.view.getBigUint64(at); }
  else if (!open || major < 2 || major > 5) throw new Error('not CBOR');
  switch (major) {
    case 0: return plain(n);
    case 1: return plain(-1n - n);
    case 2: return `h'${[...chunks(r, n, open, depth)].map((x) => x.toString(16).padStart(2, '0')).join('')}'`;
    case 3: return new TextDecoder('utf-8', { fatal: true }).decode(chunks(r, n, open, depth));
    case 4: {
      const list = [];
      while (open || list.length < Number(n)) { const v = item(r, depth + 1); if (v === BREAK) { if (open) break; throw new Error('not CBOR'); } list.push(v); }
      return list;
    }
    case 5: {
      /** @type {Record<string, any>} */
      const map = Object.create(null);
      for (let i = 0; open || i < Number(n); i++) { const k = item(r, depth + 1); if (k === BREAK) { if (open) break; throw new Error('not CBOR'); } map[String(k)] = item(r, depth + 1); }
      return map;
    }
    case 6: return { [`tag ${n}`]: item(r, depth + 1) };
    default:
      if (info === 20) return false;
      if (info === 21) return true;
      if (info === 22) return null;
      if (info === 23) return 'undefined';
      return `simple(${n})`;
  }
}

const BREAK = Symbol('break');

/** @param {bigint} n */
const plain = (n) => (n >= BigInt(Number.MIN_SAFE_INTEGER) && n <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(n) : String(n));

/** @param {Reader} r @param {bigint} n @param {boolean} open @param {number} depth */
function chunks(r, n, open, depth) {
  if (!open) return r.take(Number(n));
  const all = [];
  for (;;) {
    const head = r.byte();
    if (head === 0xff) return Uint8Array.from(all);
    r.at -= 1;
    const start = r.at;
    const major = head >> 5;
    if ((major !== 2 && major !== 3) || (head & 31) === 31) throw new Error('not CBOR');
    item(r, depth + 1);
    const len = head & 31;
    const skip = 1 + (len < 24 ? 0 : len === 24 ? 1 : len === 25 ? 2 : len === 26 ? 4 : 8);
    all.push(...r.b.slice(start + skip, r.at));
  }
}

/** @param {number} bits */
function half(bits) {
  const [sign, exp, frac] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exp === 0) return sign * 2 ** -24 * frac;
  if (exp === 31) return frac ? NaN : sign * Infinity;
  return sign * 2 ** (exp - 25) * (1024 + frac);
}

/** Sparkplug B's data types (3.0.0, 6.4.16) whose numbers are signed, and how wide. */
const SIGNED = new Map([[1, 8], [2, 16], [3, 32], [4, 64]]);

/**
 * A Sparkplug B payload (protobuf) as a value that JSON can show.
 * @param {Uint8Array} b
 */
export function sparkplug(b) {
  /** @type {Record<string, any>} */
  const out = {};
  /** @type {any[]} */
  const metrics = [];
  for (const [field, value] of protobuf(b)) {
    if (field === 1 && typeof value === 'bigint') out.timestamp = new Date(Number(value)).toISOString();
    else if (field === 2 && value instanceof Uint8Array) metrics.push(metric(value));
    else if (field === 3 && typeof value === 'bigint') out.seq = Number(value);
    else if (field === 4 && value instanceof Uint8Array) out.uuid = new TextDecoder().decode(value);
    else if (field === 5 && value instanceof Uint8Array) out.body = `${value.length} B`;
  }
  return { ...out, metrics };
}

/** @param {Uint8Array} b */
function metric(b) {
  /** @type {Record<string, any>} */
  const m = {};
  let type = 0;
  const text = (/** @type {any} */ v) => new TextDecoder().decode(v);
  for (const [field, v] of protobuf(b)) {
    switch (field) {
      case 1: m.name = text(v); break;
      case 2: m.alias = Number(v); break;
      case 3: m.timestamp = new Date(Number(v)).toISOString(); break;
      case 4: type = Number(v); break;
      case 7: if (v) m.value = null; break;
      case 10: case 11: m.value = typeof v === 'bigint' ? integer(v, type) : v; break;
      case 12: case 13: m.value = v; break;
      case 14: m.value = Boolean(v); break;
      case 15: m.value = text(v); break;
      case 16: m.value = `${/** @type {Uint8Array} */ (v).length} B`; break;
      default: break;
    }
  }
  return m;
}

/** @param {bigint} v @param {number} type */
function integer(v, type) {
  const bits = SIGNED.get(type);
  return plain(bits ? BigInt.asIntN(bits, v) : v);
}

/**
 * Fields of a protobuf message: varints as bigint, floats as numbers, the rest as bytes.
 * @param {Uint8Array} b
 * @returns {Generator<[number, bigint | number | Uint8Array]>}
 */
function* protobuf(b) {
  const r = new Reader(b);
  while (r.left > 0) {
    const key = Number(r.varint());
    const field = key >> 3;
    switch (key & 7) {
      case 0: yield [field, r.varint()]; break;
      case 1: yield [field, r.view.getFloat64(r.need(8), true)]; break;
      case 2: yield [field, r.take(Number(r.varint()))]; break;
      case 5: yield [field, r.view.getFloat32(r.need(4), true)]; break;
      default: throw new Error('not protobuf');
    }
  }
}

/** Ways to look at a payload that fit it, the best first. @param {FeedRecord} r @returns {string[]} */
export function ways(r) {
  const all = [];
  if (json(r) !== undefined && typeof json(r) === 'object') all.push('JSON');
  if (r.text !== undefined) all.push('Text');
  if (r.text === undefined) {
    if (isSparkplug(r.topic)) all.push('Sparkplug');
    try { const v = cbor(bytesOf(r)); if (v !== null && typeof v === 'object') all.push('CBOR'); } catch { /* It is none. */ }
  }
  return [...all, 'Hex'];
}
