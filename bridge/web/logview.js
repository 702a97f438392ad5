// The log: per stream its segments to scale, who reads where, how full the ring is and when its oldest segment leaves; time to disk; records per sync.

import uPlot from './vendor/uplot.js';
import { begin, hatch, SANS, SANS_BOLD, ticks, tickText, token, triangle } from './draw.js';
import { RetainedMessages } from './retained.js';
import { attr, brief, bytes, count, h, set, span, value } from './format.js';

/** @typedef {import('./app.js').App} App */

const SIZES = ['≤ 1', '≤ 2', '≤ 4', '≤ 8', '≤ 16', '≤ 32', '≤ 64', '> 64'];

/** @param {number | null} us */
const ms = (us) => (us === null ? null : us / 1000);

export class LogView {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.list = h('div', { class: 'streams' });
    this.plot = h('div', { class: 'plot' });
    this.legend = h('span', { class: 'quiet' });
    const key = (/** @type {string} */ colour) => { const el = h('i', { class: 'shade' }); el.style.background = `var(--${colour})`; return el; };
    const [p50, p99] = [h('span', { class: 'quiet' }), h('span', { class: 'quiet' })];
    this.percentiles = [p50, p99];
    this.sizes = h('canvas', { class: 'sizes' });
    this.retained = new RetainedMessages(app);
    root.append(this.list, h('div', { class: 'below' },
      h('section', { class: 'chart', 'aria-label': 'Time to disk' }, h('div', { class: 'chart-head' }, h('h3', { text: 'Time to disk, ms' }), h('span', {}, key('ink2'), p50), h('span', {}, key('s1'), p99), this.legend), this.plot),
      h('section', { class: 'chart', 'aria-label': 'Records per sync' }, h('div', { class: 'chart-head' }, h('h3', { text: 'Records per sync, last minute' })), this.sizes)), this.retained.el);
    /** @type {Map<string, { el: HTMLElement, name: HTMLElement, size: HTMLElement, pace: HTMLElement, sync: HTMLElement, canvas: HTMLCanvasElement, ring: HTMLCanvasElement, next: HTMLElement }>} */
    this.rows = new Map();
    /** @type {any[]} */
    this.segments = [];
    /** @type {any[]} */
    this.rates = [];
    /** @type {uPlot | undefined} */
    this.chart = undefined;
    /** @type {Map<string, { at: number, end: number, rate: number | undefined }>} */
    this.pace = new Map();
  }

  async poll() {
    this.segments = (await this.app.get('segments'))?.segments ?? this.segments;
    this.rates = (await this.app.get('rates'))?.rates ?? this.rates;
    await this.retained.poll();
  }

  update() {
    for (const s of this.app.streams) this.#stream(s);
    this.#times();
    this.#commits();
    this.retained.update();
  }

  /** @param {any} s */
  #stream(s) {
    const { app } = this;
    const key = `${s.stream}/${s.partition}`;
    let row = this.rows.get(key);
    if (!row) {
      const made = { name: h('h3'), size: h('p'), pace: h('p', { class: 'quiet' }), sync: h('p'), canvas: h('canvas', { class: 'segments' }), ring: h('canvas', { class: 'ring' }), next: h('p', { class: 'quiet' }) };
      const el = h('section', { class: 'stream', 'aria-label': key }, h('div', { class: 'about' }, made.name, h('p', { class: 'mono', text: s.stream === 'system' ? '$SYS/#' : '#' }), made.size, made.pace, made.sync), made.canvas, h('div', { class: 'room' }, made.ring, made.next));
      row = { el, ...made };
      this.rows.set(key, row);
      this.list.append(el);
    }
    const p = this.pace.get(key);
    if (!p || app.now() - p.at > 2000) this.pace.set(key, { at: app.now(), end: s.end, rate: p ? (s.end - p.end) / ((app.now() - p.at) / 1000) : undefined });
    set(row.name, app.streams.filter((o) => o.stream === s.stream).length > 1 ? key : s.stream);
    const limits = [s.limit_age_ms === null ? '' : span(s.limit_age_ms), s.limit_bytes === null ? '' : bytes(s.limit_bytes)].filter((t) => t !== '').join(' · ');
    set(row.size, `${bytes(s.bytes)} of ${limits || 'the disk'}`);
    const rate = this.pace.get(key)?.rate;
    set(row.pace, rate === undefined ? 'measuring…' : `${rate < 10 ? rate.toFixed(1) : brief(Math.round(rate))}/s${s.oldest_ms !== null && s.end > s.start ? ` · oldest ${span(app.now() - s.oldest_ms)}` : ''}`);
    const stopped = s.failed ?? s.stalled;
    set(row.sync, stopped ? `stopped: ${stopped}` : 'synced before every PUBACK');
    attr(row.sync, 'data-kind', stopped ? 'bad' : 'durable');
    this.#segments(row.canvas, s);
    this.#ring(row.ring, s);
    const open = this.segments.filter((g) => g.stream === s.stream && g.partition === s.partition).length <= 1;
    set(row.next, open ? 'One segment, still open' : s.leaves_at_ms === null ? (limits ? 'Oldest segment: not foreseen' : 'Nothing leaves') : s.leaves_at_ms <= app.now() ? 'Oldest segment leaves now' : `Oldest segment leaves in ${span(s.leaves_at_ms - app.now())}`);
  }

  /** @param {HTMLCanvasElement} el @param {any} s */
  #segments(el, s) {
    const { app } = this;
    const canvas = begin(el);
    const all = this.segments.filter((g) => g.stream === s.stream && g.partition === s.partition);
    if (!canvas) return;
    const { c, width } = canvas;
    const [top, tall] = [40, 30];
    // To scale against what may be kept: the white is room.
    const total = Math.max(s.limit_bytes ?? 0, s.bytes, 1);
    const scale = s.bytes / total < 0.04 ? (width * 0.06) / Math.max(1, s.bytes) : width / total;
    c.strokeStyle = token('line2');
    c.strokeRect(0.5, top + 0.5, width - 1, tall - 1);
    let x = 0;
    /** @type {{ base: number, end: number, x: number, w: number }[]} */
    const spots = [];
    for (const [i, g] of all.entries()) {
      const w = Math.max(2, g.bytes * scale);
      c.fillStyle = i === all.length - 1 ? token('durable-soft') : token('bar2');
      c.fillRect(x, top, Math.max(1, w - 1), tall);
      if (i === 0 && all.length > 1) hatch(c, x, top, Math.max(1, w - 1), tall, token('ink2'));
      spots.push({ base: g.base, end: g.end ?? s.end, x, w });
      x += w;
    }
    const at = (/** @type {number} */ offset) => {
      const spot = spots.findLast((g) => g.base <= offset) ?? spots[0];
      return spot ? spot.x + Math.min(1, (offset - spot.base) / Math.max(1, spot.end - spot.base)) * spot.w : 0;
    };
    const durable = Math.max(1, at(s.end));
    c.fillStyle = token('durable');
    c.fillRect(durable - 1, top - 2, 2, tall + 4);
    c.fillStyle = token('ink2');
    c.textAlign = 'left';
    c.fillText(count(s.start), 0, top + tall + 14);
    c.textAlign = 'right';
    c.fillStyle = token('durable');
    c.fillText(`on disk ${count(s.end)}`, width, top + tall + 14);
    if (app.playhead.mode !== 'live') {
      const offset = app.playhead.offsets.get(`${s.stream}/${s.partition}`);
      if (offset !== undefined) { c.fillStyle = token('past'); c.fillRect(at(offset) - 1, top - 4, 2, tall + 8); }
    }
    const readers = app.sessions.flatMap((one) => one.places.filter((p) => p.stream === s.stream && p.partition === s.partition).map((p) => ({ p, one })));
    const live = readers.filter(({ p }) => p.behind_ms === null).length;
    c.font = SANS_BOLD;
    let right = width;
    if (live > 0) {
      const w = c.measureText(`${live} live`).width;
      c.fillStyle = token('durable');
      triangle(c, durable, top - 8, 4, token('durable'));
      c.textAlign = durable + w + 10 > width ? 'right' : 'left';
      c.fillText(`${live} live`, durable + (durable + w + 10 > width ? -8 : 8), top - 6);
      if (durable + w + 10 > width) right = durable - w - 18;
    }
    // A name beside the live ones stands above theirs.
    const first = readers.filter((r) => r.p.behind_ms !== null).some((r) => Math.abs(at(r.p.next) - durable) < 200);
    let level = live > 0 && first ? 1 : 0;
    for (const { p, one } of readers.filter((r) => r.p.behind_ms !== null).sort((a, b) => (b.p.behind_ms ?? 0) - (a.p.behind_ms ?? 0)).slice(0, 8)) {
      const spot = at(Math.max(p.next, s.start));
      const kind = p.loss_at_ms !== null && p.loss_at_ms - app.now() < 6 * 3600_000 ? 'bad' : one.connected ? 'behind' : 'ink2';
      triangle(c, spot, top - 8, 4, token(kind));
      c.fillRect(spot - 1, top - 4, 2, tall + 4);
      // Two have room above the files.
      if (level > 1) continue;
      const text = `${one.client_id}, ${span(p.behind_ms ?? 0)} back`;
      const w = c.measureText(text).width;
      const leftward = spot + 8 + w > right;
      c.textAlign = leftward ? 'right' : 'left';
      c.fillText(text, spot + (leftward ? -8 : 8), top - 7 - 13 * level);
      level += 1;
    }
    c.font = SANS;
  }

  /** @param {HTMLCanvasElement} el @param {any} s */
  #ring(el, s) {
    const canvas = begin(el);
    if (!canvas) return;
    const { c, width, height } = canvas;
    const part = s.limit_bytes ? Math.min(1, s.bytes / s.limit_bytes) : 0;
    const r = Math.min(width, height) / 2 - 6;
    c.lineWidth = 8;
    c.strokeStyle = token('bar2');
    c.beginPath();
    c.arc(width / 2, height / 2, r, 0, 2 * Math.PI);
    c.stroke();
    c.strokeStyle = part > 0.9 ? token('behind') : token('ink2');
    c.beginPath();
    c.arc(width / 2, height / 2, r, -Math.PI / 2, -Math.PI / 2 + 2 * Math.PI * part);
    c.stroke();
    c.fillStyle = token('ink');
    c.textAlign = 'center';
    c.font = SANS_BOLD;
    c.fillText(s.limit_bytes === null ? 'disk' : part > 0 && part < 0.01 ? '<1 %' : `${Math.round(part * 100)} %`, width / 2, height / 2 + 4);
  }

  #times() {
    const { app } = this;
    if (this.plot.clientWidth === 0) return;
    const [from, to] = app.window();
    const steps = this.rates.filter((s) => s.at_ms >= from && s.at_ms <= to);
    if (!this.chart) {
      const axis = { stroke: () => token('ink2'), grid: { stroke: () => token('line'), width: 1 }, ticks: { show: false }, font: SANS };
      this.chart = new uPlot({
        width: this.plot.clientWidth, height: 170, ms: 1, legend: { show: false }, padding: [8, 2, 0, 0],
        scales: { x: { time: true, range: () => /** @type {[number, number]} */ (app.window()) }, y: { distr: 3, range: (_, low, high) => uPlot.rangeLog(low ?? 0.1, high ?? 10, 10, true) } },
        axes: [{ ...axis, size: 22, gap: 2, splits: (_, __, low, high) => ticks(low, high, 6).all, values: (_, all) => all.map((t) => tickText(t, (all[1] ?? 0) - (all[0] ?? 0))) }, { ...axis, size: 62, gap: 4 }],
        series: [{}, { stroke: () => token('ink2'), width: 1.4, points: { show: false } }, { stroke: () => token('s1'), width: 1.4, points: { show: false } }],
        cursor: { sync: { key: 'weir' }, drag: { x: false, y: false }, y: false },
      }, [[]], this.plot);
      this.plot.addEventListener('click', () => { const left = this.chart?.cursor.left ?? -1; if (left >= 0 && this.chart) app.seekFrom(this.chart.posToVal(left, 'x')); });
      new ResizeObserver(() => this.chart?.setSize({ width: this.plot.clientWidth, height: 170 })).observe(this.plot);
    }
    this.chart.setData(/** @type {any} */ ([steps.map((s) => s.at_ms), steps.map((s) => ms(s.append_p50_us)), steps.map((s) => ms(s.append_p99_us))]));
    const last = steps.findLast((s) => s.append_p50_us !== null);
    for (const [i, [name, us]] of [['p50', last?.append_p50_us], ['p99', last?.append_p99_us]].entries()) {
      const el = this.percentiles[i];
      if (el) set(el, us === undefined || us === null ? String(name) : `${name} ${value(us / 1000)}`);
    }
    set(this.legend, !last ? 'nothing written in this range' : app.range > 3600_000 || app.range === 0 ? 'the last hour is kept' : '');
  }

  #commits() {
    const canvas = begin(this.sizes);
    if (!canvas) return;
    const { c, width, height } = canvas;
    const sums = SIZES.map((_, i) => this.rates.slice(-12).reduce((n, s) => n + (s.commit_sizes[i] ?? 0), 0));
    const most = Math.max(1, ...sums);
    const w = width / SIZES.length;
    for (const [i, n] of sums.entries()) {
      const tall = n === 0 ? 1 : Math.max(2, (n / most) * (height - 40));
      c.fillStyle = token('bar');
      c.fillRect(i * w + 3, height - 20 - tall, w - 6, tall);
      c.fillStyle = token('ink2');
      c.textAlign = 'center';
      c.fillText(SIZES[i] ?? '', i * w + w / 2, height - 5);
      if (n > 0) c.fillText(brief(n), i * w + w / 2, height - 24 - tall);
    }
  }
}
