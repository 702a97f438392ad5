// Charts of several topics: lines by uPlot, states as bars. A click moves the playhead; all have one crosshair.

import uPlot from './vendor/uplot.js';
import { begin, hatch, SANS, ticks, tickText, token } from './draw.js';
import { attr, h, keyed, line, set, value, values } from './format.js';
import { Series } from './series.js';

/** @typedef {import('./app.js').App} App */

/** What topics have in common, and what tells each apart. @param {string[]} names */
export function common(names) {
  const split = names.map((n) => n.split('/'));
  const [first = []] = split;
  const same = first.map((level, i) => split.every((s) => s.length === first.length && s[i] === level));
  if (names.length < 2) return { title: names[0] ?? '', labels: [''] };
  const title = first.map((level, i) => (same[i] ? level : '…')).join('/').replace(/…(\/…)+/g, '…');
  return { title, labels: split.map((s) => s.filter((_, i) => !same[i]).join('/') || s.join('/')) };
}

/** @param {App} app @param {number} from @param {number} to @param {(t: number) => number} x @param {CanvasRenderingContext2D} c @param {number} top @param {number} height */
function over(app, from, to, x, c, top, height) {
  for (const gap of app.outages) {
    const [a, b] = [Math.max(from, gap.from), Math.min(to, gap.to ?? to)];
    if (b <= from || a >= to) continue;
    if (gap.to === undefined) hatch(c, x(a), top, x(b) - x(a), height, token('behind'));
    else {
      c.fillStyle = gap.lost ? token('bad-soft') : token('durable-soft');
      c.globalAlpha = 0.5;
      c.fillRect(x(a), top, Math.max(1, x(b) - x(a)), height);
      c.globalAlpha = 1;
    }
  }
  if (app.playhead.mode === 'live') return;
  const at = x(Math.min(to, Math.max(from, app.playhead.time)));
  // What came later is dimmed.
  c.fillStyle = token('panel');
  c.globalAlpha = 0.65;
  c.fillRect(at, top, x(to) - at, height);
  c.globalAlpha = 1;
  c.fillStyle = token('past');
  c.fillRect(Math.round(at) - 1, top, 2, height);
}

/** Beside the plots of all charts, px: one moment is at one place in all of them. */
const LEFT = 62;
const RIGHT = 2;
/** States that are named above their bars. */
const LEGEND_MAX = 8;
/** Shades tell neighbours apart; the words say which is which. @param {number} i */
const shade = (i) => ['bar2', 'bar', 'line2'][i % 3] ?? 'bar';

export class LineChart {
  /**
   * @param {App} app @param {HTMLElement} root @param {Series[]} series at most four
   * @param {{ title?: string, height: number }} look
   */
  constructor(app, root, series, look) {
    this.app = app;
    this.series = series;
    this.height = look.height;
    const names = common(series.map((s) => s.topic));
    const field = series[0]?.field ?? '';
    this.values = series.map(() => h('b'));
    const legend = series.map((_, i) => h('span', { class: 'legend' }, h('i', { class: 'swatch', 'data-series': (i % 4) + 1 }),
      names.labels[i] || (names.labels.length > 1 ? '' : field || 'value'), ' ', this.values[i]));
    const title = look.title ?? `${names.title}${names.labels.length > 1 && field ? ` · ${field}` : ''}`;
    this.box = h('div', { class: 'plot' });
    this.box.style.height = `${look.height}px`;
    this.el = h('section', { class: 'chart', 'aria-label': `Chart of ${title}` }, h('div', { class: 'chart-head' }, h('h3', { text: title, title }), ...legend), this.box);
    root.append(this.el);
    /** @type {uPlot | undefined} */
    this.plot = undefined;
    this.drawn = '';
    this.theme = '';
    /** @type {number | undefined} */
    this.hover = undefined;
  }

  #make() {
    const { app } = this;
    const axis = { stroke: () => token('ink2'), grid: { stroke: () => token('line'), width: 1 }, ticks: { show: false }, font: SANS };
    /** @type {uPlot.Options} */
    const options = {
      width: this.box.clientWidth,
      height: this.height,
      ms: 1,
      legend: { show: false },
      padding: [8, RIGHT, 0, 0],
      // An axis has its room before there is anything to measure.
      scales: { x: { time: true, range: () => /** @type {[number, number]} */ (app.window()) }, y: { range: (_, low, high) => uPlot.rangeNum(low ?? 0, high ?? 1, 0.1, true) } },
      axes: [
        { ...axis, size: 22, gap: 2, splits: (_, __, low, high) => ticks(low, high, Math.max(2, this.box.clientWidth / 160)).all, values: (_, all) => { const step = (all[1] ?? 0) - (all[0] ?? 0); return all.map((t) => tickText(t, step)); } },
        { ...axis, size: LEFT, gap: 4, values: (_, all) => values(all) },
      ],
      series: [{}, ...this.series.map((_, i) => ({
        stroke: () => token(app.away ? 'ink3' : `s${(i % 4) + 1}`), width: 1.4, spanGaps: true,
        // One or two make no line.
        points: { size: 5, show: (/** @type {uPlot} */ u, /** @type {number} */ n) => (u.data[n] ?? []).filter((v) => v !== null).length < 3 }, dash: i === 3 ? [6, 4] : [],
      }))],
      cursor: { sync: { key: 'weir', setSeries: false }, drag: { x: false, y: false }, points: { show: true }, y: false },
      hooks: {
        draw: [(u) => {
          const { left, top, height } = u.bbox;
          const [from, to] = app.window();
          u.ctx.save();
          u.ctx.beginPath();
          u.ctx.rect(left, top, u.bbox.width, height);
          u.ctx.clip();
          over(app, from, to, (t) => left + ((t - from) / (to - from)) * u.bbox.width, u.ctx, top, height);
          u.ctx.restore();
        }],
        setCursor: [(u) => {
          const at = u.cursor.idx;
          this.hover = at === null || at === undefined || (u.cursor.left ?? -1) < 0 ? undefined : u.data[0][at];
          this.#legend();
        }],
      },
    };
    this.plot = new uPlot(options, /** @type {any} */ ([[], ...this.series.map(() => [])]), this.box);
    this.box.addEventListener('click', () => {
      const left = this.plot?.cursor.left ?? -1;
      if (left >= 0 && this.plot) this.app.seekFrom(this.plot.posToVal(left, 'x'));
    });
    new ResizeObserver(() => { this.plot?.setSize({ width: this.box.clientWidth, height: this.height }); this.drawn = ''; }).observe(this.box);
  }

  update() {
    for (const s of this.series) s.load();
    if (this.box.clientWidth === 0) return;
    if (!this.plot) this.#make();
    const [from, to] = this.app.window();
    const key = `${this.series.map((s) => s.version).join()} ${Math.round(from / 500)} ${Math.round(to / 500)} ${this.app.playhead.mode === 'live' ? '' : this.app.playhead.time} ${this.app.theme} ${this.app.away} ${this.app.outages.length}`;
    if (key === this.drawn) return;
    this.drawn = key;
    const times = [...new Set(this.series.flatMap((s) => [...s.points.keys()]))].filter((t) => t >= from - 60_000 && t <= to).sort((a, b) => a - b);
    const rows = this.series.map((s) => times.map((t) => s.points.get(t)?.last ?? null));
    this.plot?.setData(/** @type {any} */ ([times, ...rows]));
    this.#legend();
  }

  #legend() {
    const at = this.app.playhead.mode === 'live' ? this.app.now() : this.app.playhead.time;
    for (const [i, s] of this.series.entries()) {
      const v = this.hover !== undefined ? s.points.get(this.hover)?.last : s.at(at)?.number;
      const el = this.values[i];
      if (el) set(el, v === undefined ? '–' : value(v));
    }
  }

  close() {
    this.plot?.destroy();
    this.el.remove();
  }
}

export class StateChart {
  /** @param {App} app @param {HTMLElement} root @param {Series[]} series */
  constructor(app, root, series) {
    this.app = app;
    this.series = series;
    const names = common(series.map((s) => s.topic));
    this.labels = names.labels.length > 1 ? names.labels : [''];
    this.canvas = h('canvas', { class: 'states' });
    this.canvas.style.height = `${series.length * 39 + 24}px`;
    this.now = h('span', { class: 'quiet' });
    this.legend = h('div', { class: 'state-keys quiet' });
    this.el = h('section', { class: 'chart', 'aria-label': `States of ${names.title}` },
      h('div', { class: 'chart-head' }, h('h3', { text: names.title, title: names.title }), this.now), this.legend, this.canvas);
    root.append(this.el);
    this.canvas.addEventListener('click', (e) => {
      const [from, to] = app.window();
      const box = this.canvas.getBoundingClientRect();
      const part = (e.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
      if (part >= 0) app.seekFrom(from + Math.min(1, part) * (to - from));
    });
    this.drawn = '';
  }

  update() {
    for (const s of this.series) s.load();
    const at = this.app.playhead.mode === 'live' ? this.app.now() : this.app.playhead.time;
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const s of this.series) {
      const now = s.at(at)?.state;
      if (now !== undefined) counts.set(now, (counts.get(now) ?? 0) + 1);
    }
    set(this.now, [...counts].map(([name, n]) => (this.series.length === 1 ? name : `${n} of ${this.series.length} ${name}`)).slice(0, 3).join(', '));
    const [from, to] = this.app.window();
    const key = `${this.series.map((s) => s.version).join()} ${Math.round(from / 500)} ${Math.round(to / 500)} ${this.app.playhead.mode === 'live' ? '' : this.app.playhead.time} ${this.app.theme} ${this.canvas.clientWidth}`;
    if (key === this.drawn) return;
    const canvas = begin(this.canvas);
    if (!canvas) return;
    this.drawn = key;
    const { c, width, height } = canvas;
    const x = (/** @type {number} */ t) => LEFT + ((Math.min(to, Math.max(from, t)) - from) / (to - from)) * (width - LEFT - RIGHT);
    /** @type {string[]} */
    const known = [];
    for (const [i, s] of this.series.entries()) {
      const top = i * 39;
      c.fillStyle = token('ink2');
      c.textAlign = 'left';
      c.fillText((this.labels[i] ?? '').slice(0, 10), 0, top + 22);
      for (const [n, [t, name]] of s.states.entries()) {
        const [a, b] = [x(t), x(s.states[n + 1]?.[0] ?? to)];
        if (b <= a) continue;
        if (!known.includes(name)) known.push(name);
        c.fillStyle = token(shade(known.indexOf(name)));
        c.fillRect(a, top, Math.max(1, b - a - 0.5), 36);
        const w = c.measureText(name).width;
        if (w + 12 < b - a) {
          c.fillStyle = token(known.indexOf(name) % 3 === 1 ? 'on-bar' : 'ink');
          c.fillText(name, a + 6, top + 22);
        }
      }
    }
    const named = known.slice(0, LEGEND_MAX).map((name, i) => ({ name, i }));
    keyed(this.legend, named, (one) => one.name, ({ name }) => {
      const swatch = h('i', { class: 'shade' });
      const el = h('span', {}, swatch, line(name, 24));
      return { el, update: (one) => { swatch.style.background = token(shade(one.i)); } };
    });
    const tick = ticks(from, to, Math.max(2, width / 160));
    c.fillStyle = token('ink2');
    c.textAlign = 'center';
    for (const t of tick.all) c.fillText(tickText(t, tick.step), Math.min(width - 18, Math.max(LEFT + 18, x(t))), height - 6);
    over(this.app, from, to, x, c, 0, height - 22);
  }

  close() { this.el.remove(); }
}

/** A grid of charts for what was chosen: topics with one field in one chart, states together. */
export class Charts {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    /** @type {(LineChart | StateChart)[]} */
    this.charts = [];
    /** @type {Series[]} */
    this.series = [];
    this.key = '';
  }

  update() {
    const chosen = this.app.charts;
    const key = JSON.stringify(chosen);
    if (key !== this.key) {
      this.key = key;
      this.#make(chosen);
    }
    for (const c of this.charts) c.update();
  }

  /** @param {{ topic: string, field: string }[]} chosen */
  #make(chosen) {
    for (const c of this.charts) c.close();
    const kept = this.series;
    this.series = chosen.map(({ topic, field }) => kept.find((s) => s.topic === topic && s.field === field) ?? new Series(this.app, topic, field));
    this.charts = [];
    /** @type {Map<string, Series[]>} */
    const groups = new Map();
    for (const s of this.series) {
      const isNumber = this.app.model.topics.get(s.topic)?.number(this.app.model.topics.get(s.topic)?.live) !== undefined;
      const name = isNumber ? `number ${s.field} ${s.topic.split('/').length}` : 'state';
      groups.set(name, [...(groups.get(name) ?? []), s]);
    }
    for (const [name, all] of groups) {
      for (let i = 0; i < all.length; i += 4) {
        const part = all.slice(i, i + 4);
        this.charts.push(name === 'state' ? new StateChart(this.app, this.root, part) : new LineChart(this.app, this.root, part, { height: 146 }));
      }
    }
    attr(this.root, 'data-empty', chosen.length === 0);
  }

  /** @param {import('./client.js').FeedRecord} r */
  take(r) {
    for (const s of this.series) s.take(r);
  }

  /** @param {number} from */
  again(from) {
    for (const s of this.series) s.again(from);
  }
}
