// The log as a time axis: records per second, what was refused, who is behind, where the playhead is; below it the whole log.

import { begin, hatch, SANS, SANS_BOLD, ticks, tickText, token, triangle } from './draw.js';
import { attr, clock, clockMs, count, h, line, set, span } from './format.js';

/** @typedef {import('./app.js').App} App */

const STEPS = 180;
export const RANGES = /** @type {[string, number][]} */ ([['5m', 300_000], ['15m', 900_000], ['1h', 3600_000], ['24h', 86400_000], ['all', 0]]);
const SPEEDS = [1, 4, 16, 60];
/** Of a client id beside its mark. */
const NAME_MAX = 32;

export class Strip {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.pill = h('span', { class: 'pill' });
    this.time = h('span', { class: 'clock' });
    this.ago = h('span', { class: 'ago' });
    this.position = h('span', { class: 'mono position' });
    this.durability = h('span', { class: 'durable-text' });
    const button = (/** @type {string} */ label, /** @type {string} */ text, /** @type {() => void} */ act) =>
      h('button', { type: 'button', class: 'icon', 'aria-label': label, title: label, text, onclick: act });
    this.pause = button('Pause (space)', '❚❚', () => app.pauseOrPlay());
    this.speed = h('button', { type: 'button', class: 'icon speed', title: 'Speed of replay', onclick: () => this.#nextSpeed() });
    this.live = h('button', { type: 'button', class: 'live', onclick: () => app.goLive() });
    this.liveText = h('span', { text: 'Live' });
    this.liveCount = h('span', { class: 'since' });
    this.live.append(this.liveText, this.liveCount);
    const transport = h('div', { class: 'transport' },
      h('div', { class: 'now' }, this.pill, this.time, this.ago),
      h('div', { class: 'where' }, this.position, this.durability),
      h('div', { class: 'buttons' }, button('Previous record (,)', '◀❙', () => app.stepRecord(-1)), this.pause,
        button('Next record (.)', '❙▶', () => app.stepRecord(1)), this.speed, this.live));
    this.ranges = RANGES.map(([name, ms]) => h('button', { type: 'button', text: name, onclick: () => app.setRange(ms) }));
    this.canvas = h('canvas', { class: 'bars' });
    this.slider = h('div', { class: 'slider', role: 'slider', tabindex: '0', 'aria-label': 'Moment of the log that the page shows' }, this.canvas);
    this.whole = h('canvas', { class: 'whole', title: 'The whole log' });
    this.oldest = h('span', { class: 'oldest' });
    const axis = h('div', { class: 'axis' },
      h('div', { class: 'ranges', role: 'group', 'aria-label': 'Range' }, ...this.ranges),
      this.slider, h('div', { class: 'log-line' }, this.oldest, this.whole));
    root.append(transport, axis);
    /** @type {{ from: number, step: number, records: number[] } | undefined} */
    this.history = undefined;
    this.asked = 0;
    this.#listen();
  }

  #nextSpeed() {
    const at = SPEEDS.indexOf(this.app.playhead.speed);
    this.app.setSpeed(SPEEDS[(at + 1) % SPEEDS.length] ?? 1);
  }

  #listen() {
    const { app } = this;
    const moment = (/** @type {MouseEvent} */ e, /** @type {HTMLElement} */ el, /** @type {[number, number]} */ [from, to]) => {
      const box = el.getBoundingClientRect();
      const at = Math.min(1, Math.max(0, (e.clientX - box.left) / box.width));
      return from + at * (to - from);
    };
    for (const [el, window] of /** @type {[HTMLElement, () => [number, number]][]} */ ([[this.slider, () => app.window()], [this.whole, () => app.wholeLog()]])) {
      let dragging = false;
      el.addEventListener('pointerdown', (e) => {
        dragging = true;
        el.setPointerCapture(e.pointerId);
        app.pinWindow();
        app.seek(moment(e, el, window()));
      });
      el.addEventListener('pointermove', (e) => { if (dragging) app.seek(moment(e, el, window())); });
      const end = (/** @type {PointerEvent} */ e) => {
        if (!dragging) return;
        dragging = false;
        if (e.type === 'pointerup') app.seek(moment(e, el, window()));
      };
      el.addEventListener('pointerup', end);
      el.addEventListener('pointercancel', end);
    }
    this.slider.addEventListener('wheel', (e) => { e.preventDefault(); app.zoom(e.deltaY > 0 ? 1 : -1); }, { passive: false });
    this.slider.addEventListener('keydown', (e) => {
      const step = e.shiftKey ? 10_000 : 1000;
      if (e.key === 'ArrowLeft') app.move(-step);
      else if (e.key === 'ArrowRight') app.move(step);
      else if (e.key === 'Home') app.seek(app.wholeLog()[0]);
      else if (e.key === 'End') app.goLive();
      else return;
      e.preventDefault();
      e.stopPropagation();
    });
  }

  /** Asks for what is drawn, when a step is over or the window is another one. */
  async load() {
    const [from, to] = this.app.window();
    const step = Math.max(1000, Math.ceil((to - from) / STEPS / 1000) * 1000);
    const start = Math.floor(from / step) * step;
    const due = this.history?.step !== step || this.history.from !== start || Date.now() - this.asked > Math.max(2000, step);
    if (!due || Date.now() - this.asked < 500 || this.app.away || document.hidden) return;
    this.asked = Date.now();
    const got = await this.app.get(`history?from_ms=${start}&step_ms=${step}&steps=${Math.ceil((to - start) / step)}`);
    if (got) this.history = { from: got.from_ms, step: got.step_ms, records: got.records };
  }

  draw() {
    this.#bars();
    this.#log();
  }

  /** The clock and the transport. */
  text() {
    const { app } = this;
    const { mode, time, speed } = app.playhead;
    const [word, kind] = app.away ? ['Away', 'behind'] : mode === 'live' ? ['Live', 'durable'] : mode === 'past' ? ['Past', 'past'] : [`Replay ${speed}×`, 'past'];
    set(this.pill, word);
    attr(this.pill, 'data-kind', kind);
    const at = app.away ? app.lastSeen : mode === 'live' ? app.now() : time;
    set(this.time, clockMs(at));
    set(this.ago, app.away ? `last seen ${span(app.now() - at)} ago` : mode === 'live' ? '' : `${span(app.now() - at)} ago`);
    const where = app.where();
    set(this.position, where ? `${where.name} · ${count(where.offset)}` : '');
    set(this.durability, where ? 'on disk' : '');
    const paused = mode === 'past';
    set(this.pause, paused ? '▶' : '❚❚');
    attr(this.pause, 'aria-label', paused ? 'Replay (space)' : 'Pause (space)');
    set(this.speed, `${speed}×`);
    attr(this.live, 'data-past', mode !== 'live');
    set(this.liveCount, mode === 'live' ? '' : `+${count(app.sinceThen())}`);
    for (const [i, b] of this.ranges.entries()) attr(b, 'aria-pressed', String(RANGES[i]?.[1] === app.range));
    const [from, to] = app.window();
    attr(this.slider, 'aria-valuemin', Math.round(from));
    attr(this.slider, 'aria-valuemax', Math.round(to));
    attr(this.slider, 'aria-valuenow', Math.round(mode === 'live' ? to : time));
    attr(this.slider, 'aria-valuetext', mode === 'live' ? 'live' : `${clock(time)}, ${span(app.now() - time)} ago`);
    document.body.dataset.mode = mode;
  }

  #bars() {
    const canvas = begin(this.canvas);
    if (!canvas) return;
    const { c, width, height } = canvas;
    const { app } = this;
    const [from, to] = app.window();
    const base = height - 16;
    const x = (/** @type {number} */ t) => ((t - from) / (to - from)) * width;
    const playhead = app.playhead.mode === 'live' ? to : app.playhead.time;
    c.strokeStyle = token('line2');
    c.beginPath();
    c.moveTo(0, base + 0.5);
    c.lineTo(width, base + 0.5);
    c.stroke();
    if (app.isEmpty()) {
      c.fillStyle = token('ink2');
      c.fillText('The log is empty. The first record will appear here.', 2, base - 20);
      return;
    }
    for (const at of this.#ticks(from, to, width)) {
      c.fillStyle = token('line');
      c.fillRect(Math.round(x(at.t)), 12, 1, base - 12);
      c.fillStyle = token('ink2');
      c.textAlign = 'center';
      const half = c.measureText(at.text).width / 2;
      c.fillText(at.text, Math.min(width - half - 1, Math.max(half + 1, x(at.t))), height - 3);
    }
    const hist = this.history;
    if (hist) {
      const most = Math.max(1, ...hist.records);
      const w = Math.max(1, (hist.step / (to - from)) * width - 1);
      for (const [i, n] of hist.records.entries()) {
        if (n === 0) continue;
        const start = hist.from + i * hist.step;
        const top = Math.max(2, (n / most) * (base - 20));
        c.fillStyle = start > playhead ? token('bar2') : token('bar');
        c.fillRect(x(start), base - top, w, top);
      }
    }
    const [oldest] = app.wholeLog();
    if (oldest > from) hatch(c, 0, 12, x(oldest), base - 12, token('line2'));
    for (const gap of app.outages) {
      const [a, b] = [x(gap.from), x(gap.to ?? to)];
      if (gap.to === undefined) hatch(c, a, 12, b - a, base - 12, token('behind'));
      else {
        c.fillStyle = gap.lost ? token('bad-soft') : token('durable-soft');
        c.fillRect(a, 12, Math.max(1, b - a), base - 12);
      }
    }
    for (const e of app.events) {
      if (e.time < from || e.time > to) continue;
      if (e.kind === 'refused' || e.kind === 'dropped') {
        c.fillStyle = token('bad');
        c.fillRect(Math.round(x(e.time)) - 1, base - 5, 2, 5);
      } else if (e.kind === 'started') {
        c.strokeStyle = token('ink2');
        c.setLineDash([3, 3]);
        c.beginPath();
        c.moveTo(Math.round(x(e.time)) + 0.5, 12);
        c.lineTo(Math.round(x(e.time)) + 0.5, base);
        c.stroke();
        c.setLineDash([]);
      }
    }
    this.#readers(c, x, from, width, base);
    const at = Math.round(x(playhead));
    const colour = app.away ? token('behind') : app.playhead.mode === 'live' ? token('durable') : token('past');
    c.fillStyle = colour;
    c.fillRect(Math.min(width - 2, at - 1), 6, 2, base - 4);
    c.beginPath();
    c.roundRect(Math.min(width - 9, at - 5), 0, 9, 10, 3);
    c.fill();
  }

  /** @param {number} from @param {number} to @param {number} width */
  #ticks(from, to, width) {
    const { all, step } = ticks(from, to, Math.max(2, width / 110));
    return all.map((t) => ({ t, text: tickText(t, step) }));
  }

  /**
   * Where those behind read. Names find room from the right; one more is a number.
   * @param {CanvasRenderingContext2D} c @param {(t: number) => number} x @param {number} from @param {number} width @param {number} base
   */
  #readers(c, x, from, width, base) {
    const { app } = this;
    c.font = SANS_BOLD;
    const left = x(from);
    // The ranges stand to the left of the names; on a phone above them.
    const ranges = width > 600 ? 200 : 0;
    /** Where names stand already. @type {[number, number][]} */
    const taken = [];
    const fits = (/** @type {number} */ start, /** @type {number} */ w) => start >= ranges && start + w <= width - 14 && taken.every(([a, b]) => start + w < a || start > b);
    let outside = 0;
    // Whoever is connected and behind has its name before those that are away.
    const all = app.readersBehind();
    for (const r of [...all.filter((one) => one.connected), ...all.filter((one) => !one.connected)]) {
      const t = app.now() - r.behind_ms;
      const name = line(r.client_id, NAME_MAX);
      const colour = r.connected ? token('behind') : token('ink3');
      c.fillStyle = colour;
      c.textAlign = 'left';
      if (t < from) {
        const text = `◂ ${name} ${r.connected ? `reads ${span(r.behind_ms)} back` : `away ${span(r.behind_ms)}`}`;
        const w = c.measureText(text).width;
        const start = Math.max(ranges, left);
        if (outside++ > 0 || !fits(start, w)) continue;
        c.fillText(text, start, 9);
        taken.push([start, start + w + 12]);
        continue;
      }
      const at = x(t);
      triangle(c, at, 12, 4, colour);
      c.fillRect(at - 0.5, 12, 1, base - 12);
      const text = r.connected ? `${name} reads ${span(r.behind_ms)} back` : `${name} away ${span(r.behind_ms)}`;
      const w = c.measureText(text).width;
      // Beside its marker, or not at all.
      const start = [at + 2 - w, at + 7].find((one) => fits(one, w));
      if (start === undefined) continue;
      c.fillText(text, start, 9);
      taken.push([start - 12, start + w + 12]);
    }
    c.font = SANS;
  }

  #log() {
    const { app } = this;
    const [oldest, newest] = app.wholeLog();
    set(this.oldest, app.isEmpty() || oldest === newest ? '' : `oldest record ${span(app.now() - oldest)} ago`);
    const canvas = begin(this.whole);
    if (!canvas || app.isEmpty()) return;
    const { c, width, height } = canvas;
    const x = (/** @type {number} */ t) => ((t - oldest) / Math.max(1, newest - oldest)) * width;
    c.fillStyle = token('bar2');
    c.fillRect(0, height / 2 - 2, width, 5);
    const [from, to] = app.window();
    c.fillStyle = token('bar');
    c.fillRect(Math.max(0, x(from)), height / 2 - 2, Math.max(2, x(to) - Math.max(0, x(from))), 5);
    for (const r of app.readersBehind()) {
      c.fillStyle = r.connected ? token('behind') : token('ink3');
      c.fillRect(x(app.now() - r.behind_ms) - 1, height / 2 - 5, 2, 10);
    }
    c.fillStyle = app.playhead.mode === 'live' ? token('durable') : token('past');
    c.fillRect(Math.min(width - 2, x(app.playhead.mode === 'live' ? newest : app.playhead.time) - 1), height / 2 - 5, 2, 10);
  }
}
