// The eight figures: links to where each comes from. Their boxes have their size before their numbers.

import { attr, brief, count, h, rate, set, span } from './format.js';

/** @typedef {import('./app.js').App} App */

export class Figures {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    const names = /** @type {[string, string, import('./app.js').View][]} */ ([['received', 'Received', 'live'], ['delivered', 'Delivered', 'clients'], ['p50', 'To disk, p50', 'log'],
      ['p99', 'To disk, p99', 'log'], ['waiting', 'Waiting', 'log'], ['connected', 'Connected', 'clients'], ['behind', 'Behind', 'clients'], ['lost', 'Lost', 'refusals']]);
    /** @type {Map<string, { value: HTMLElement, unit: HTMLElement }>} */
    this.cells = new Map();
    for (const [key, label, view] of names) {
      // In the past it says that it is of now.
      const name = h('span', { class: 'name' }, label, h('span', { class: 'now', text: ', now' }));
      const [value, unit] = [h('b', { text: '–' }), h('span', { class: 'unit' })];
      root.append(h('a', { href: `#view=${view}`, class: 'figure', onclick: (/** @type {Event} */ e) => { e.preventDefault(); app.show(view); } },
        name, h('span', { class: 'line' }, value, unit)));
      this.cells.set(key, { value, unit });
    }
    this.health = /** @type {HTMLElement} */ (document.getElementById('health'));
    this.healthWord = h('b');
    this.healthText = h('span', { class: 'quiet' });
    this.thinned = h('span', { class: 'thinned', hidden: true, title: 'Fast topics show their newest value ten times a second. Pause, and the log has every record.' });
    this.health.append(h('i', { class: 'disc' }), this.healthWord, this.healthText, this.thinned);
    this.counts = /** @type {Map<string, Element>} */ (new Map([...document.querySelectorAll('[data-count]')].map((e) => [e.getAttribute('data-count') ?? '', e])));
    this.ratio = { told: 0, thinned: 0, at: 0, text: '' };
  }

  /** @param {string} key @param {string | number} value @param {string} unit @param {string | null} [kind] */
  #put(key, value, unit, kind = null) {
    const cell = this.cells.get(key);
    if (!cell) return;
    set(cell.value, value);
    set(cell.unit, unit);
    // What is short has room on a phone too.
    attr(cell.unit, 'data-short', unit.length <= 3);
    attr(cell.value, 'data-kind', kind);
  }

  update() {
    const { app } = this;
    const f = app.figures;
    if (!f) return this.#health();
    // In one unit, whatever they are: side by side they are compared.
    const ms = (/** @type {number | null} */ us) => (us === null ? ['–', ''] : [(us / 1000).toFixed(us < 10_000 ? 2 : us < 100_000 ? 1 : 0), 'ms']);
    const [p50, p99] = [ms(f.append_p50_us), ms(f.append_p99_us)];
    this.#put('received', rate(f.received), '/s');
    this.#put('delivered', rate(f.delivered), '/s');
    this.#put('p50', p50[0] ?? '', p50[1] ?? '');
    this.#put('p99', p99[0] ?? '', p99[1] ?? '');
    this.#put('waiting', f.pending === 0 ? '0' : brief(f.pending), f.pending === 0 ? 'for the disk' : 'B for the disk', f.pending > 1 << 20 ? 'behind' : null);
    const offline = app.sessions.filter((s) => !s.connected).length;
    this.#put('connected', count(f.connections), `of ${count(f.connections + offline)}`);
    const away = app.sessions.filter((s) => !s.connected && s.places.some((p) => (p.behind_ms ?? 0) > 0)).length;
    // The gateway counts those that it reads to from the log; who takes no more is behind too.
    const behind = Math.max(f.behind, app.sessions.filter((s) => s.connected && s.places.some((p) => (p.behind_ms ?? 0) > 2000)).length);
    this.#put('behind', count(behind), away > 0 ? `+ ${away} offline` : '', behind > 0 ? 'behind' : null);
    this.#put('lost', count(f.lost), 'since the start', f.lost > 0 ? 'bad' : 'durable');
    const clients = this.counts.get('clients');
    if (clients) set(clients, count(f.connections + offline));
    const refused = this.counts.get('refusals');
    if (refused) set(refused, f.refused + f.dropped > 0 ? brief(f.refused + f.dropped) : '');
    this.#health();
  }

  #health() {
    const { app } = this;
    const f = app.figures;
    let [word, text, kind] = ['Loading', '', 'quiet'];
    if (app.away) [word, text, kind] = ['Away', 'trying again', 'behind'];
    else if (f?.failed) [word, text, kind] = ['Stopped', 'nothing is acknowledged', 'bad'];
    else if (app.isEmpty()) [word, text, kind] = ['Ready', 'log is empty', 'durable'];
    else if (f) [word, text, kind] = ['Durable', f.synced_ms === null ? 'nothing written since the start' : `synced ${span(Math.max(0, f.time - f.synced_ms))} ago`, 'durable'];
    set(this.healthWord, word);
    set(this.healthText, text);
    attr(this.health, 'data-kind', kind);
    const { model } = app;
    const { ratio } = this;
    if (performance.now() - ratio.at > 2000) {
      const [told, thinned] = [model.told - ratio.told, model.thinned - ratio.thinned];
      ratio.text = thinned > 0 ? `thinned 1 : ${Math.max(2, Math.round((told + thinned) / Math.max(1, told)))}` : '';
      Object.assign(ratio, { told: model.told, thinned: model.thinned, at: performance.now() });
    }
    set(this.thinned, ratio.text);
    attr(this.thinned, 'hidden', ratio.text === '');
  }
}
