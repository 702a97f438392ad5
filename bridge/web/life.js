// A message's life: received, on disk, acknowledged, sent and acknowledged per subscriber. Times are kept of topics that are watched, as one that is open here is;
// of others the cursors say who has it.

import { begin, SANS, SANS_BOLD, token } from './draw.js';
import { attr, clockMs, count, h, line, micros, set } from './format.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./model.js').Rec} Rec */
/** @typedef {{ publisher: string, received_ms: number, durable_us: number | null, batch: number | null, acknowledged_us: number | null, subscribers: { client_id: string, sent_us: number, acknowledged_us: number | null }[] }} Trace */
/** @typedef {{ name: string, from?: number, to?: number, dot?: number, text: string, kind: string | null, dotted?: boolean }} Lane */

const LANES = 6;
const LANE = 20;
/** Labels to the left, words to the right. */
const [LEFT, RIGHT] = [176, 240];

/** Does an MQTT filter match a topic? @param {string} filter @param {string} topic */
export function matches(filter, topic) {
  const plain = filter.startsWith('$share/') ? filter.split('/').slice(2).join('/') : filter;
  const [f, t] = [plain.split('/'), topic.split('/')];
  if (topic.startsWith('$') && (f[0] === '+' || f[0] === '#')) return false;
  for (const [i, level] of f.entries()) {
    if (level === '#') return true;
    if (i >= t.length || (level !== '+' && level !== t[i])) return false;
  }
  return f.length === t.length;
}

/** @param {number} us */
const time = (us) => micros(us).join(' ');

export class Life {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.position = h('span', { class: 'mono quiet' });
    this.said = h('span', { class: 'quiet end-text' });
    this.canvas = h('canvas', { class: 'lanes', role: 'img' });
    this.canvas.style.height = `${LANES * LANE + 30}px`;
    root.append(h('div', { class: 'chart-head' }, h('h3', { text: 'Life of this message' }), this.position, this.said), this.canvas);
    this.key = '';
    /** @type {Trace | null | undefined} `null`: there is none */
    this.trace = undefined;
    this.asked = 0;
    this.drawn = '';
  }

  /** @param {Rec | undefined} r */
  update(r) {
    attr(this.root, 'hidden', r === undefined);
    if (!r) return;
    const key = `${r.name} ${r.offset}`;
    if (key !== this.key) {
      this.key = key;
      this.trace = undefined;
      this.asked = 0;
    }
    set(this.position, `${r.name} · ${count(r.offset)}`);
    this.#ask(r, key);
    this.#draw(r);
  }

  /** Asks again as long as somebody has not acknowledged. @param {Rec} r @param {string} key */
  async #ask(r, key) {
    const waits = this.trace === undefined || (this.trace && this.trace.subscribers.some((s) => s.acknowledged_us === null) && this.app.now() - r.time < 60_000);
    const age = performance.now() - this.asked;
    if (!waits || this.app.away || age < (this.trace === undefined ? 200 : 1000)) return;
    this.asked = performance.now();
    const cut = r.name.lastIndexOf('/');
    const got = await this.app.get(`records/${encodeURIComponent(r.name.slice(0, cut))}/${r.name.slice(cut + 1)}/${r.offset}/trace`);
    if (this.key === key) this.trace = got ?? null;
  }

  /** @param {Rec} r @returns {Lane[]} */
  #lanes(r) {
    const { app } = this;
    /** @type {Lane[]} */
    const lanes = [];
    const t = this.trace;
    if (t) {
      if (t.acknowledged_us !== null) lanes.push({ name: `Acknowledged to ${t.publisher}`, dot: t.acknowledged_us, text: `${time(t.acknowledged_us)} after it came`, kind: null });
      else lanes.push({ name: `From ${t.publisher}`, text: r.qos === 0 ? 'QoS 0: nothing is acknowledged' : 'not acknowledged yet', kind: 'quiet' });
      for (const s of t.subscribers) {
        const done = s.acknowledged_us;
        lanes.push({ name: s.client_id, from: s.sent_us, to: done ?? undefined, text: done === null ? `sent after ${time(s.sent_us)}` : `${time(s.sent_us)}, acknowledged ${time(done)}`, kind: null });
      }
    }
    const told = new Set(t?.subscribers.map((s) => s.client_id));
    for (const s of app.sessions) {
      if (told.has(s.client_id) || !s.subscriptions.some((f) => !f.filter.startsWith('$share/') && matches(f.filter, r.topic))) continue;
      const place = s.places.find((p) => `${p.stream}/${p.partition}` === r.name);
      if (!place) continue;
      if (place.next <= r.offset && (place.behind_ms ?? 0) > 0) lanes.push({ name: s.client_id, text: `behind: ${count(r.offset - place.next)} come before it`, kind: 'behind', dotted: true });
      else if (!t) lanes.push({ name: s.client_id, text: place.next > r.offset || place.live ? 'has it, or was not owed it' : 'is not there yet', kind: 'quiet' });
    }
    return lanes;
  }

  /** @param {Rec} r */
  #draw(r) {
    const lanes = this.#lanes(r);
    const t = this.trace;
    const durable = t?.durable_us ?? undefined;
    set(this.said, t?.batch ? `One fdatasync for ${t.batch === 1 ? 'this record' : `${t.batch} records`}; nobody saw it before that`
      : t === null ? 'Times are kept while a topic is open; this one came before' : '');
    const key = JSON.stringify([lanes, durable, this.app.theme, this.canvas.clientWidth]);
    if (key === this.drawn) return;
    const canvas = begin(this.canvas);
    if (!canvas) return;
    this.drawn = key;
    const { c, width } = canvas;
    attr(this.canvas, 'aria-label', [durable === undefined ? '' : `on disk after ${time(durable)}`, ...lanes.map((l) => `${l.name}: ${l.text}`)].join('; '));
    const [left, right] = width > 620 ? [LEFT, width - RIGHT] : [110, width - 20];
    const most = Math.max(1000, durable ?? 0, ...lanes.flatMap((l) => [l.from ?? 0, l.to ?? 0, l.dot ?? 0]));
    // Microseconds and seconds in one picture: the root of time.
    const x = (/** @type {number} */ us) => left + Math.sqrt(Math.min(1, us / most)) * (right - left);
    const [top, bottom] = [22, 22 + LANES * LANE];
    if (t) {
      c.fillStyle = token('raised');
      c.fillRect(left, top, durable === undefined ? 0 : x(durable) - left, bottom - top);
      c.textAlign = 'left';
      c.fillStyle = token('ink2');
      c.fillText(`received ${clockMs(t.received_ms)}`, left, 10);
      for (const part of [0.1, 0.4, 1]) {
        const at = Math.round(x(most * part));
        c.fillStyle = token('line');
        c.fillRect(at, top, 1, bottom - top);
        c.fillStyle = token('ink2');
        c.textAlign = 'center';
        const near = durable !== undefined && Math.abs(at - x(durable)) < 90;
        if (width > 620 && !near && at - left > 190) c.fillText(time(most * part), Math.min(at, width - 30), 10);
      }
      if (durable !== undefined) {
        const at = Math.round(x(durable));
        c.fillStyle = token('durable');
        c.fillRect(at - 1, top - 8, 2, bottom - top + 8);
        c.font = SANS_BOLD;
        const text = `on disk +${time(durable)}`;
        const w = c.measureText(text).width;
        c.textAlign = 'left';
        c.fillText(text, Math.max(left + 150, Math.min(at - w / 2, right - w)), 10);
        c.font = SANS;
      }
    }
    const shown = lanes.slice(0, lanes.length > LANES ? LANES - 1 : LANES);
    for (const [i, l] of shown.entries()) {
      const y = top + i * LANE + LANE / 2;
      c.textAlign = 'left';
      c.fillStyle = token('ink');
      c.fillText(line(l.name, width > 620 ? 26 : 16), 0, y + 4);
      c.fillStyle = l.kind === 'behind' ? token('behind') : token('ink2');
      if (width > 620) c.fillText(l.text, right + 18, y + 4);
      if (l.dotted) {
        c.strokeStyle = token('behind');
        c.setLineDash([2, 3]);
        c.beginPath();
        c.moveTo(x(durable ?? 0) + 4, y);
        c.lineTo(right, y);
        c.stroke();
        c.setLineDash([]);
      }
      if (l.from !== undefined) {
        const [a, b] = [x(l.from), x(l.to ?? l.from)];
        c.fillStyle = token('bar');
        c.fillRect(a, y - 4, Math.max(3, b - a), 8);
        if (l.to !== undefined) this.#dot(c, b, y);
      }
      if (l.dot !== undefined) this.#dot(c, x(l.dot), y);
    }
    if (lanes.length > LANES) {
      c.fillStyle = token('ink2');
      c.textAlign = 'left';
      c.fillText(`and ${lanes.length - shown.length} more`, 0, top + (LANES - 0.5) * LANE + 4);
    }
    if (lanes.length === 0 && this.trace === null) {
      c.fillStyle = token('ink2');
      c.textAlign = 'left';
      c.fillText('No session subscribes to it now.', 0, top + 14);
    }
  }

  /** @param {CanvasRenderingContext2D} c @param {number} x @param {number} y */
  #dot(c, x, y) {
    c.fillStyle = token('durable');
    c.beginPath();
    c.arc(x, y, 4, 0, 2 * Math.PI);
    c.fill();
  }
}
