// Values over time: the past from the log in steps, the present as it comes. At most 700 points each.

import { fields } from './payload.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./client.js').FeedRecord} FeedRecord */

const POINTS = 350;
/** Changes of a text that are kept. */
const STATES = 700;

export class Series {
  /** @param {App} app @param {string} topic @param {string} field */
  constructor(app, topic, field) {
    this.app = app;
    this.topic = topic;
    this.field = field;
    this.step = 0;
    /** @type {Map<number, { low: number, high: number, last: number }>} by the beginning of the step */
    this.points = new Map();
    /** @type {[number, string][]} */
    this.states = [];
    /** What was asked for. */
    this.from = 0;
    this.range = 0;
    this.loading = false;
    this.version = 0;
  }

  /** Asks the log for what is not known of the window. */
  load() {
    const [from, to] = this.app.window();
    const range = to - from;
    const wider = Math.abs(range - this.range) > range / 20 || from < this.from - this.step;
    if (this.loading || !wider || this.app.away) return;
    this.step = Math.max(1000, Math.ceil(range / POINTS / 1000) * 1000);
    this.range = range;
    this.from = Math.floor(from / this.step) * this.step;
    this.points.clear();
    this.states = [];
    this.#ask(this.from);
  }

  /** What was missed while the gateway did not answer, or anything else between. @param {number} from */
  again(from) {
    if (this.step > 0 && !this.loading) this.#ask(Math.floor(from / this.step) * this.step);
  }

  /** @param {number} from */
  #ask(from) {
    this.loading = true;
    /** @type {number | null} */
    let next = null;
    this.app.feed.subscribe({ filter: this.topic, from: `time:${new Date(from).toISOString()}`, until: 'latest', step: `${this.step}ms`, field: this.field }, {
      steps: (s) => {
        for (const series of s.series) {
          for (const [at, low, high, last] of /** @type {[number, number, number, number, number][]} */ (series.points)) this.points.set(at, { low, high, last });
          this.states = [...this.states.filter(([t]) => t < from), ...series.states, ...this.states.filter(([t]) => t > (series.states.at(-1)?.[0] ?? from))].slice(-STATES);
        }
        if (!s.complete) next = s.read_to;
        this.version += 1;
      },
      end: () => {
        this.loading = false;
        // A long past comes in parts; one step that is too much for an answer is left as it is.
        if (next !== null) this.#ask(Math.max(Math.floor(next / this.step) * this.step, from + this.step));
      },
      error: () => { this.loading = false; },
    });
  }

  /** @param {FeedRecord} r */
  take(r) {
    if (r.topic !== this.topic || this.step === 0) return;
    const leaf = fields(r).get(this.field);
    if (leaf?.number !== undefined) {
      const at = Math.floor(r.time / this.step) * this.step;
      const p = this.points.get(at);
      if (p) Object.assign(p, { low: Math.min(p.low, leaf.number), high: Math.max(p.high, leaf.number), last: leaf.number });
      else {
        this.points.set(at, { low: leaf.number, high: leaf.number, last: leaf.number });
        while (this.points.size > 2 * POINTS) this.points.delete(/** @type {number} */ (this.points.keys().next().value));
      }
    } else if (leaf?.state !== undefined) {
      const last = this.states.at(-1);
      if (last?.[1] === leaf.state || (last && last[0] > r.time)) return;
      this.states.push([r.time, leaf.state]);
      if (this.states.length > STATES) this.states.shift();
    } else return;
    this.version += 1;
  }

  /** The value at a moment. @param {number} time */
  at(time) {
    const t = this.app.model.topics.get(this.topic);
    const r = this.app.playhead.mode === 'live' ? t?.live : t?.then;
    if (r && r.time <= time) return fields(r).get(this.field);
    return undefined;
  }
}
