// Four different ends: lost, refused, dropped, thinned; why, how often, what helps; and the events, each of which moves the playhead.

import { attr, brief, count, h, keyed, line, set, span, when } from './format.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./app.js').LogEvent} LogEvent */

const SHOWN = 200;

/** What a reason means and what helps. */
const HELP = /** @type {Record<string, [string, string]>} */ ({
  'refused 0x85': ['The client id is not allowed', 'MQTT 3.1.1 without a client id and without clean session: give the client an id'],
  'refused 0x84': ['The version of the protocol is not spoken', 'Weir speaks MQTT 3.1.1 and 5'],
  'refused 0x97': ['A quota was exceeded', 'see docs/messages.md'],
  'refused origin': ['A page of another origin asked', 'listen.origins names those that may; others are nobody’s loss'],
  'refused topic': ['Publish to a topic of the gateway’s own', 'nothing is published under $SYS by clients: choose another topic'],
  'dropped behind': ['QoS 0 beyond what waits for a slow subscriber', 'subscribe with QoS 1, or read faster'],
  'dropped too_large': ['Larger than the client’s maximum packet size', 'raise Maximum Packet Size in the client'],
  'dropped expired': ['Its message expiry interval was over', 'nothing: its publisher wanted that'],
  'dropped lost': ['Retention or damage took it before it was read', 'keep more: --retention-bytes, --retention-age; weir explain CLIENT'],
  'closed violation': ['The client broke the protocol', 'the event names the statement of the specification'],
});

export class Refusals {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.ends = /** @type {[string, string, (f: any) => number][]} */ ([
      ['Lost', 'gone before it was read', (f) => f.lost], ['Refused', 'not taken', (f) => f.refused], ['Dropped', 'not sent: QoS 0, too large, expired', (f) => f.dropped], ['Thinned', 'on this page; still in the log', () => app.model.thinned]])
      .map(([name, text, get]) => { const value = h('b'); return { get, name, value, el: h('div', { class: 'end' }, h('span', { class: 'name', text: name }), value, h('span', { class: 'quiet', text })) }; });
    this.reasons = h('tbody');
    this.events = h('tbody');
    this.note = h('p', { class: 'quiet note' });
    root.append(h('div', { class: 'ends' }, ...this.ends.map((e) => e.el)),
      h('div', { class: 'two' },
        h('section', {}, h('div', { class: 'head' }, h('h2', { text: 'Why' }), h('span', { class: 'quiet', text: 'of the last 2,000 events' })),
          h('table', { class: 'reasons' }, h('thead', {}, h('tr', {}, h('th', { text: 'Reason' }), h('th', { class: 'n', text: 'Count' }), h('th', { class: 'n', text: 'Last' }), h('th', { text: 'What helps' }))), this.reasons)),
        h('section', { class: 'events' }, h('div', { class: 'head' }, h('h2', { text: 'Events' }), h('span', { class: 'quiet', text: 'choose one: the page goes to its moment' })),
          h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Events' }, h('table', {}, this.events)), this.note)));
    this.drawn = '';
  }

  update() {
    const { app } = this;
    for (const e of this.ends) {
      const n = app.figures ? e.get(app.figures) : 0;
      set(e.value, count(n));
      attr(e.value, 'data-kind', n === 0 ? (e.name === 'Lost' ? 'durable' : null) : e.name === 'Lost' || e.name === 'Refused' ? 'bad' : null);
    }
    const past = app.playhead.mode !== 'live';
    const shown = past ? app.events.filter((e) => e.time <= app.playhead.time) : app.events;
    const key = `${shown.length} ${shown.at(-1)?.offset} ${Math.floor(app.now() / 5000)}`;
    if (key === this.drawn) return;
    this.drawn = key;
    this.#reasons(shown);
    keyed(this.events, shown.slice(-SHOWN).reverse(), (e) => String(e.offset), (e) => this.#event(e));
    set(this.note, shown.length === 0 ? 'Nothing happened yet.' : '');
  }

  /** @param {LogEvent[]} shown */
  #reasons(shown) {
    /** @type {Map<string, { n: number, last: number }>} */
    const all = new Map();
    for (const e of shown) {
      const key = reason(e);
      if (key === undefined) continue;
      const r = all.get(key) ?? { n: 0, last: 0 };
      r.n += Number(e.data.messages ?? 1) + Number(e.data.more ?? 0);
      r.last = Math.max(r.last, e.time);
      all.set(key, r);
    }
    const now = this.app.now();
    this.reasons.replaceChildren(...[...all].sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([key, r]) => h('tr', {}, h('td', {}, h('b', { text: HELP[key]?.[0] ?? key }), h('span', { class: 'quiet mono', text: ` ${key}` })),
      h('td', { class: 'n', text: brief(r.n) }), h('td', { class: 'n quiet', text: `${span(now - r.last)} ago` }), h('td', { class: 'quiet', text: HELP[key]?.[1] ?? 'see docs/messages.md' }))));
    if (all.size === 0) this.reasons.append(h('tr', {}, h('td', { colspan: 4, class: 'quiet', text: 'Nothing was refused or dropped.' })));
  }

  /** @param {LogEvent} e */
  #event(e) {
    const bad = reason(e) !== undefined;
    const more = [e.data.reason, e.data.origin, e.data.code && e.data.origin === undefined ? `0x${Number(e.data.code).toString(16)}` : '', e.data.statement, e.data.messages ? `${e.data.messages} messages` : '', e.data.records ? `${count(e.data.records)} records` : '', e.data.address].filter((x) => x !== undefined && x !== null && x !== '').join(' · ');
    const at = h('td', { class: 'mono' });
    const go = () => this.app.seekFrom(e.time);
    const key = (/** @type {KeyboardEvent} */ k) => { if (k.key === 'Enter') { k.stopPropagation(); go(); } };
    const el = h('tr', { tabindex: '0', onclick: go, onkeydown: key }, at,
      h('td', { 'data-kind': bad ? 'bad' : e.kind === 'behind' ? 'behind' : null, text: e.kind }), h('td', {}, h('b', { text: line(e.client, 40) })), h('td', { class: 'quiet', text: line(more, 80) }));
    return { el, update: () => set(at, when(e.time, this.app.now())) };
  }
}

/** Why something was refused or dropped; `undefined`: nothing was. @param {LogEvent} e */
function reason(e) {
  if (e.kind === 'refused') return `refused ${e.data.reason ?? (e.data.origin === undefined ? `0x${Number(e.data.code ?? 0).toString(16)}` : 'origin')}`;
  if (e.kind === 'dropped') return `dropped ${e.data.reason}`;
  if (e.kind === 'closed' && e.data.reason === 'violation') return 'closed violation';
  return undefined;
}
