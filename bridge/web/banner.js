// What happened to the connection, in place of the figures so that nothing moves: away, back with nothing missed, restarted, a lost range.

import { attr, clockMs, count, h, set, span } from './format.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./client.js').Where} Where */
/** @typedef {{ from: number, to: number, told: number, recovered: boolean | undefined, lost: import('./client.js').Lost | undefined }} Range */

export class Banner {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.title = h('b');
    this.text = h('span');
    this.detail = h('div', { class: 'detail' });
    this.next = h('span', { class: 'quiet' });
    this.retry = h('button', { type: 'button', text: 'Try now', onclick: () => app.feed.retry() });
    this.show = h('button', { type: 'button', text: 'Show that time', onclick: () => this.#show() });
    this.close = h('button', { type: 'button', text: 'Close', onclick: () => this.#hide() });
    this.words = h('div', { class: 'words' }, h('div', {}, this.title, ' ', this.text), this.detail);
    root.append(h('i', { class: 'disc' }), this.words, h('div', { class: 'acts' }, this.next, this.retry, this.show, this.close));
    /** @type {Map<string, Range>} */
    this.ranges = new Map();
    this.kind = '';
    this.boot = 0;
    this.bootBefore = 0;
    this.gone = { from: 0, to: 0 };
    this.tries = { n: 0, next: 0 };
  }

  /** @param {import('./client.js').Connection} c */
  connection(c) {
    if (c.state === 'away') {
      this.tries = { n: c.tries, next: c.next };
      if (this.kind !== 'away') {
        this.gone = { from: this.app.now(), to: 0 };
        this.bootBefore = this.app.figures?.boot ?? 0;
        this.ranges.clear();
      }
      this.#kind('away');
    } else if (c.state === 'open' && this.kind === 'away') {
      this.gone.to = this.app.now();
      this.#kind('back');
    }
  }

  /** Where the page goes on. @param {Where} where @param {{ end: number, recovered?: boolean, lost?: import('./client.js').Lost }} more */
  start(where, more) {
    if (more.recovered === undefined && !more.lost) return;
    this.ranges.set(where.name, { from: more.lost?.from ?? where.position, to: more.end, told: 0, recovered: more.recovered, lost: more.lost });
    if (more.lost || more.recovered === false) {
      const outage = this.app.outages.at(-1);
      if (outage) outage.lost = true;
    }
  }

  /** @param {number} n @param {Where} where */
  records(n, where) {
    const range = this.ranges.get(where.name);
    if (range && this.kind === 'back' && where.position <= range.to) range.told += n;
    if (range && this.kind === 'back' && this.gone.to > 0 && where.position >= range.to && range.told > 0) this.app.chartGrid.again(this.gone.from);
  }

  /** Retention or damage took what the page was still to be told. @param {import('./client.js').Lost} lost @param {Where} where */
  lost(lost, where) {
    this.say('bad', `${count(lost.to - lost.from)} offsets are lost`, `${where.name} [${count(lost.from)}, ${count(lost.to)}): ${lost.reason} took them before this page had read them.`);
  }

  /** @param {string} kind @param {string} title @param {string} text */
  say(kind, title, text) {
    this.#kind('said');
    attr(this.root, 'data-kind', kind);
    set(this.title, title);
    set(this.text, text);
    this.detail.replaceChildren();
  }

  /** @param {string} kind */
  #kind(kind) {
    this.kind = kind;
    attr(this.root, 'hidden', kind === '');
    attr(document.body, 'data-banner', kind === '' ? null : kind);
    attr(this.retry, 'hidden', kind !== 'away');
    attr(this.next, 'hidden', kind !== 'away');
    attr(this.close, 'hidden', kind === 'away');
    attr(this.show, 'hidden', kind !== 'back');
    // Once, and not again with each second.
    if (kind === 'away') set(/** @type {HTMLElement} */ (document.getElementById('spoken')), 'No answer from the gateway. Trying again.');
    if (kind === 'back') set(/** @type {HTMLElement} */ (document.getElementById('spoken')), 'The gateway answers again.');
  }

  #hide() {
    this.ranges.clear();
    this.#kind('');
  }

  #show() {
    this.app.seekFrom(this.gone.from);
  }

  update() {
    const { app } = this;
    if (this.kind === 'away') {
      attr(this.root, 'data-kind', 'behind');
      set(this.title, `No answer from the gateway for ${span(app.now() - this.gone.from)}`);
      const where = app.where();
      set(this.text, `Shown is the last state received: ${clockMs(app.lastSeen)}${where ? `, ${where.name} · ${count(where.offset)}` : ''}`);
      set(this.detail, 'On its return this page asks for every record after that. What it acknowledged is on disk.');
      set(this.next, `Try ${this.tries.n + 1} in ${Math.max(0, Math.ceil((this.tries.next - Date.now()) / 1000))} s`);
    } else if (this.kind === 'back') this.#back();
  }

  #back() {
    const { app } = this;
    const all = [...this.ranges];
    const lost = all.filter(([, r]) => r.lost);
    const another = all.some(([, r]) => r.recovered === false && !r.lost);
    const restarted = this.bootBefore > 0 && (app.figures?.boot ?? this.bootBefore) !== this.bootBefore;
    const told = all.reduce((n, [, r]) => n + r.told, 0);
    const ran = restarted ? `The gateway was restarted (start ${app.figures?.boot}).` : 'The gateway ran on.';
    const gone = span(this.gone.to - this.gone.from);
    attr(this.root, 'data-kind', lost.length > 0 || another ? 'bad' : 'durable');
    if (another) {
      set(this.title, `Back after ${gone}: it is another log`);
      set(this.text, 'Positions of before mean nothing here; what is shown is new.');
    } else if (lost.length > 0) {
      set(this.title, `Back after ${gone}: a range is lost`);
      set(this.text, `${ran} What retention took meanwhile is not there any more.`);
    } else {
      set(this.title, `Back after ${gone}: nothing was missed`);
      set(this.text, `${ran} ${count(told)} records told in order, no gap, no repeat.`);
    }
    const parts = all.map(([name, r]) => (r.lost ? `${name} lost [${count(r.lost.from)}, ${count(r.lost.to)}) (${r.lost.reason})` : `${name} [${count(r.from)}, ${count(r.to)})  ${count(r.to - r.from)}`));
    set(this.detail, parts.join('   '));
  }
}
