// A topic's history as a file: CSV or a line of JSON per record, from the oldest record that is kept up to the playhead.

import { attr, bytes, count, h, set } from './format.js';
import { bytesOf } from './payload.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./client.js').FeedRecord & { name: string }} Row */

/** More is for `weir log cat`. */
const RECORDS_MAX = 100_000;
const BYTES_MAX = 64 << 20;

/** RFC 4180. @param {string | number | boolean} v */
const cell = (v) => (/[",\r\n]/.test(String(v)) ? `"${String(v).replace(/"/g, '""')}"` : String(v));

const FORMS = {
  csv: {
    kind: 'text/csv',
    head: 'time,topic,position,qos,retain,payload,base64\r\n',
    /** @param {Row} r */
    line: (r) => `${[new Date(r.time).toISOString(), r.topic, `${r.name}:${r.offset}`, r.qos, r.retain, r.text ?? '', r.base64 ?? ''].map(cell).join(',')}\r\n`,
  },
  jsonl: {
    kind: 'application/x-ndjson',
    head: '',
    /** @param {Row} r */
    line: (r) => `${JSON.stringify({ time: new Date(r.time).toISOString(), topic: r.topic, position: `${r.name}:${r.offset}`, qos: r.qos, retain: r.retain, ...(r.text === undefined ? { base64: r.base64 } : { payload: r.text }) })}\n`,
  },
};

export class Export {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.what = h('p');
    this.said = h('p', { class: 'said', role: 'status' });
    const form = (/** @type {'csv' | 'jsonl'} */ name, /** @type {string} */ text) => h('button', { type: 'button', class: 'primary', text, onclick: () => this.#run(name) });
    this.ways = [form('csv', 'CSV'), form('jsonl', 'JSON lines')];
    this.close = h('button', { type: 'button', text: 'Close', onclick: () => this.dialog.close() });
    this.dialog = h('dialog', { class: 'export', 'aria-label': 'Export the history' }, h('h2', { text: 'Export the history' }), this.what, this.said, h('div', { class: 'acts' }, this.close, ...this.ways));
    this.dialog.addEventListener('close', () => this.#end());
    document.body.append(this.dialog);
    /** @type {{ close: () => void } | undefined} */
    this.subscription = undefined;
  }

  open() {
    const { app } = this;
    const until = app.playhead.mode === 'live' ? 'now' : new Date(app.playhead.time).toLocaleString('en-GB');
    set(this.what, `All records of ${app.filter()} that the log keeps, up to ${until}: at most ${count(RECORDS_MAX)} records and ${bytes(BYTES_MAX)}.`);
    this.#say('quiet', '');
    this.dialog.showModal();
  }

  #end() {
    this.subscription?.close();
    this.subscription = undefined;
    for (const b of this.ways) attr(b, 'disabled', false);
  }

  /** @param {'csv' | 'jsonl'} name */
  #run(name) {
    const { app } = this;
    this.#end();
    for (const b of this.ways) attr(b, 'disabled', true);
    const form = FORMS[name];
    const filter = app.filter();
    const time = app.playhead.mode === 'live' ? app.now() : app.playhead.time;
    /** @type {Row[]} */
    const rows = [];
    /** @type {Set<string>} */
    const started = new Set();
    let [size, lost] = [0, 0];
    const done = (/** @type {string} */ more) => {
      this.#end();
      this.#finish(rows, form, `${filter.replace(/[^\w.-]+/g, '_')}.${name}`, more + (lost > 0 ? ` ${count(lost)} records of the log are lost in between, of this or other topics.` : ''));
    };
    this.subscription = app.feed.subscribe({ filter, from: 'earliest', until: `time:${new Date(time).toISOString()}` }, {
      start: (where, more) => {
        // After a lost connection all of it comes again.
        if (started.has(where.name)) { rows.length = 0; size = 0; lost = 0; started.clear(); }
        started.add(where.name);
        if (more.lost) lost += more.lost.to - more.lost.from;
      },
      lost: (range) => { lost += range.to - range.from; },
      records: (records, where) => {
        for (const r of records) {
          // The feed cuts long payloads; the file has them whole.
          const more = 200 + r.topic.length + Math.max(r.bytes, (r.text ?? r.base64 ?? '').length);
          if (rows.length >= RECORDS_MAX || size + more > BYTES_MAX) return done(` It is full: the rest is not in it. weir log cat has no such limit.`);
          rows.push({ ...r, name: where.name });
          size += more;
        }
        this.#say('quiet', `${count(rows.length)} records…`);
      },
      end: () => done(''),
      error: (message) => { this.#end(); this.#say('bad', message); },
    });
  }

  /** @param {Row[]} rows @param {typeof FORMS.csv} form @param {string} name @param {string} more */
  async #finish(rows, form, name, more) {
    let whole = 0;
    for (const r of rows) if (!(await this.#complete(r))) whole += 1;
    rows.sort((a, b) => a.time - b.time || (a.name < b.name ? -1 : a.name > b.name ? 1 : a.offset - b.offset));
    const blob = new Blob([form.head, ...rows.map(form.line)], { type: form.kind });
    const link = h('a', { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    this.#say(whole > 0 || more ? 'behind' : 'durable', `${count(rows.length)} records in ${name}, ${bytes(blob.size)}.${more}${whole > 0 ? ` ${count(whole)} long payloads are cut: they could not be read whole.` : ''}`);
  }

  /** The feed cuts long payloads: the log has them whole. @param {Row} r @returns {Promise<boolean>} */
  async #complete(r) {
    if (bytesOf(r).length >= r.bytes) return true;
    const whole = await this.app.record(r.name, r.offset);
    if (!whole) return false;
    [r.text, r.base64] = [whole.text ?? undefined, whole.base64 ?? undefined];
    return true;
  }

  /** @param {string} kind @param {string} text */
  #say(kind, text) {
    attr(this.said, 'data-kind', kind);
    set(this.said, text);
  }
}
