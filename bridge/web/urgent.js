// The three most urgent lines: who loses data and when, who has stopped, who was refused. A place that is there stays for a while.

import { attr, count, h, line, set, span } from './format.js';
import { taken } from './clients.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {{ kind: string, who: string, text: string, act: string, go: () => void }} Line */

const LINES = 3;
/** Kinds of lines, the worst first. */
const WORST = ['bad', 'behind', 'quiet'];
/** How far a time is, in steps of a doubling. @param {number} ms */
const doublings = (ms) => (Number.isFinite(ms) ? Math.floor(Math.log2(Math.max(1, ms))) : 64);
/** A refusal is news for so long. */
const NEWS_MS = 600_000;

/** A line that has gone leaves its place empty for so long: what stands below does not jump. */
const HELD_MS = 60_000;

export class Urgent {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.shown = 0;
    this.since = 0;
    this.lines = Array.from({ length: LINES }, () => {
      const [mark, who, text, act] = [h('i', { class: 'disc' }), h('b'), h('span'), h('button', { type: 'button', class: 'link' })];
      const el = h('div', { class: 'urgent' }, mark, h('span', { class: 'said' }, who, ' ', text), act);
      const one = { el, mark, who, text, act, /** @type {() => void} */ go: () => {} };
      act.addEventListener('click', () => one.go());
      root.append(el);
      return one;
    });
  }

  /** @returns {Line[]} */
  #find() {
    const { app } = this;
    /** @type {Line[]} */
    const found = [];
    const explain = (/** @type {string} */ id) => () => { app.clientsView.choose(id); app.show('clients'); };
    if (app.figures?.failed) found.push({ kind: 'bad', who: 'The log has stopped:', text: app.figures.failed, act: 'Log ›', go: () => app.show('log') });
    for (const s of app.sessions) {
      const gone = taken(s);
      if (gone > 0) found.push({ kind: 'bad', who: s.client_id, text: `has lost records: retention took ${count(gone)}, of its topics or not, before it came to them`, act: 'Explain ›', go: explain(s.client_id) });
    }
    const behind = app.sessions.filter((s) => taken(s) === 0).map((s) => ({ s, loss: Math.min(Infinity, ...s.places.map((p) => p.loss_at_ms ?? Infinity)), lag: Math.max(0, ...s.places.filter((p) => p.stream !== 'system').map((p) => p.behind_ms ?? 0)) }))
      // Lines of about the same urgency keep their order from poll to poll.
      .filter((b) => b.lag > 5000).sort((a, b) => doublings(a.loss - app.now()) - doublings(b.loss - app.now()) || doublings(b.lag) - doublings(a.lag) || a.s.client_id.localeCompare(b.s.client_id));
    for (const { s, loss, lag } of behind) {
      const soon = loss - app.now() < 24 * 3600_000;
      if (soon) found.push({ kind: loss - app.now() < 6 * 3600_000 ? 'bad' : 'behind', who: s.client_id, text: `loses data in ${span(loss - app.now())}: reads ${span(lag)} back`, act: 'Explain ›', go: explain(s.client_id) });
      else if (s.connected && s.in_flight >= s.in_flight_max) found.push({ kind: 'behind', who: s.client_id, text: `reads ${span(lag)} back; its window is full: ${s.in_flight} in flight`, act: 'Explain ›', go: explain(s.client_id) });
      else if (s.connected) found.push({ kind: 'behind', who: s.client_id, text: `reads ${span(lag)} back`, act: 'Explain ›', go: explain(s.client_id) });
      else found.push({ kind: 'quiet', who: s.client_id, text: `is away; what waits for it is ${span(lag)} old`, act: 'Explain ›', go: explain(s.client_id) });
    }
    const bad = app.events.findLast((e) => (e.kind === 'refused' || e.kind === 'dropped') && app.now() - e.time < NEWS_MS);
    if (bad) {
      const text = bad.kind === 'refused' ? `was refused ${span(app.now() - bad.time)} ago` : `${bad.data.messages ?? 'some'} messages dropped: ${bad.data.reason}`;
      found.push({ kind: 'bad', who: bad.client || '(no name)', text, act: 'Why ›', go: () => app.show('refusals') });
    }
    // The worst first; a sort keeps the order of equals.
    return found.sort((a, b) => WORST.indexOf(a.kind) - WORST.indexOf(b.kind));
  }

  update() {
    const found = this.#find();
    const now = this.app.playhead.mode === 'live' ? '' : 'Now: ';
    if (found.length >= this.shown || performance.now() - this.since > HELD_MS) {
      this.shown = found.length;
      this.since = performance.now();
    }
    for (const [i, one] of this.lines.entries()) {
      const data = found[i];
      attr(one.el, 'hidden', i > 0 && i >= this.shown);
      attr(one.el, 'data-kind', data?.kind ?? (i === 0 ? 'durable' : 'none'));
      set(one.who, data ? now + line(data.who, 60) : i === 0 ? `${now}Nothing needs you:` : '');
      set(one.text, data?.text ?? (i === 0 ? 'nobody is behind, nothing was refused of late' : ''));
      set(one.act, data?.act ?? '');
      attr(one.act, 'hidden', !data);
      one.go = data?.go ?? (() => {});
    }
  }
}
