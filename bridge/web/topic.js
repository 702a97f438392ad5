// A topic, or a branch's merged history: chart of a field, payload in every way that fits it, the life of a message, history, fields.

import { LineChart, StateChart } from './charts.js';
import { attr, bytes, clockMs, count, h, keyed, line, rate, set, value, when } from './format.js';
import { Life } from './life.js';
import { bytesOf, cbor, Digits, fields, hex, short, sparkplug, ways, written } from './payload.js';
import { Series } from './series.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./model.js').Rec} Rec */

/** Rows of history that are held; what is older is asked of the log again. */
const ROWS_MAX = 1000;
const ASKED = 200;
const ROW = 27;

export class TopicView {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.title = h('h2', { class: 'mono topic-name' });
    this.chips = h('span', { class: 'chips' });
    this.publish = h('button', { type: 'button', text: 'Publish', title: 'Publish by hand (P)', onclick: () => app.publisher.open() });
    this.export = h('button', { type: 'button', text: 'Export', title: 'The history as a file', onclick: () => app.export.open() });
    this.back = h('button', { type: 'button', text: 'Charts', title: 'Back to the charts (Esc)', onclick: () => app.show('live') });
    this.chartBox = h('div', { class: 'field-chart' });
    this.payloadTitle = h('span', { class: 'quiet' });
    this.choice = h('div', { class: 'choice', role: 'group', 'aria-label': 'How the payload is shown' });
    this.payload = h('pre', { class: 'payload', tabindex: '0', 'aria-label': 'Payload' });
    this.more = h('button', { type: 'button', class: 'link', hidden: true, onclick: () => this.#whole() });
    this.life = new Life(app, h('section', { class: 'life', 'aria-label': 'Life of this message' }));
    this.head = h('div', { class: 'trow thead' });
    this.inner = h('div', { class: 'inner' });
    this.rows = h('div', { class: 'rows history', role: 'listbox', tabindex: '0', 'aria-label': 'History' }, this.inner);
    this.fieldRows = h('tbody');
    this.when = h('th', { class: 'n', text: 'Now' });
    this.note = h('p', { class: 'quiet note' });
    root.append(
      h('div', { class: 'head' }, this.title, this.chips, h('span', { class: 'acts' }, this.publish, this.export, this.back)),
      h('div', { class: 'upper' }, this.chartBox, h('section', { class: 'payload-box' }, h('div', { class: 'chart-head' }, h('h3', { text: 'Payload' }), this.payloadTitle, this.choice), this.payload, this.more)),
      this.life.root,
      h('div', { class: 'lower' }, h('section', { class: 'history-box' }, this.head, this.rows, this.note),
        h('section', { class: 'fields-box' }, h('table', {}, h('thead', {}, h('tr', {}, h('th', { text: 'Field' }), this.when, h('th', { class: 'n', text: 'Lowest' }), h('th', { class: 'n', text: 'Highest' }))), this.fieldRows))));
    /** @type {Rec[]} newest first */
    this.history = [];
    /** Where the chosen record stood in the list. */
    this.chosenAt = -1;
    /** @type {Rec | undefined} */
    this.selected = undefined;
    this.field = '';
    this.way = '';
    /** Ways that fit the payload, and the one that is shown. @type {string[]} */
    this.fit = [];
    this.wayShown = '';
    this.path = '';
    /** @type {{ close: () => void } | undefined} */
    this.subscription = undefined;
    /** While it is open the lives of its messages are kept. @type {{ close: () => void } | undefined} */
    this.watch = undefined;
    /** @type {Map<string, { low: number, high: number }>} */
    this.extremes = new Map();
    /** @type {LineChart | StateChart | undefined} */
    this.chart = undefined;
    /** @type {Series | undefined} */
    this.series = undefined;
    this.drawn = '';
    this.shown = '';
    /** The filter whose history is shown. */
    this.asked = '';
    /** @type {HTMLElement[]} */
    this.pool = [];
    this.rows.addEventListener('scroll', () => this.#rows());
    this.rows.addEventListener('keydown', (e) => this.#key(e));
    app.listeners.push((r) => { if (r.topic === this.path) this.series?.take(r); });
  }

  get isBranch() { return this.app.filter() !== this.app.topic; }

  /** The address or a row says what is open. */
  opened() {
    if (this.path === this.app.topic && this.subscription && this.asked === this.app.filter()) return;
    this.path = this.app.topic;
    this.history = [];
    this.selected = undefined;
    this.extremes.clear();
    this.chart?.close();
    this.chart = undefined;
    this.series = undefined;
    this.field = '';
    this.way = '';
    this.drawn = '';
    this.watch?.close();
    this.watch = this.isBranch ? undefined : this.app.feed.subscribe({ filter: this.path, snapshot: false, latest_only: true, rate_max: 0.1, trace: true }, {});
    this.#ask();
  }

  /** Nobody looks: nothing is asked. */
  leave() {
    this.subscription?.close();
    this.watch?.close();
    this.subscription = undefined;
    this.watch = undefined;
    this.path = '';
  }

  /** The playhead is somewhere else. */
  moved() {
    if (this.app.view === 'topic' && this.subscription) this.#ask();
  }

  #ask() {
    const { app } = this;
    this.subscription?.close();
    this.asked = app.filter();
    const [path, live] = [this.path, app.playhead.mode === 'live'];
    const until = live ? undefined : `time:${new Date(app.playhead.time).toISOString()}`;
    /** @type {Rec[]} */
    let got = [];
    let first = true;
    const take = () => {
      if (this.path !== path) return;
      if (first) { this.history = []; first = false; this.selected = undefined; }
      for (const r of got) this.#add(r);
      got = [];
      app.dirty();
    };
    this.subscription = app.feed.subscribe({ filter: app.filter(), from: `last:${ASKED}`, until }, {
      records: (records, where) => { for (const r of records) got.push({ ...r, name: where.name }); take(); },
      end: take,
      error: (message) => set(this.note, message),
    });
  }

  /** A record of a replay. @param {Rec} r */
  replayed(r) {
    if (this.app.view !== 'topic') return;
    if (r.topic === this.path || (this.isBranch && r.topic.startsWith(`${this.path}/`))) this.#add(r);
  }

  /** @param {Rec} r */
  #add(r) {
    const known = this.history.some((one, i) => i < 300 && one.offset === r.offset && one.name === r.name);
    if (known) return;
    const at = this.history.findIndex((one) => one.time < r.time || (one.time === r.time && one.name === r.name && one.offset < r.offset));
    if (at < 0) this.history.push(r);
    else this.history.splice(at, 0, r);
    if (this.history.length > ROWS_MAX) this.history.pop();
    // A row that was chosen stays in sight; the list goes on above it.
    if (at === 0 && this.rows.scrollTop > ROW) this.rows.scrollTop += ROW;
    for (const [name, leaf] of fields(r)) {
      if (leaf.number === undefined) continue;
      const e = this.extremes.get(name);
      if (!e) this.extremes.set(name, { low: leaf.number, high: leaf.number });
      else { e.low = Math.min(e.low, leaf.number); e.high = Math.max(e.high, leaf.number); }
    }
    this.drawn = '';
  }

  current() { return this.selected ?? this.history[0]; }

  update() {
    const { app } = this;
    // A name may turn out to be a branch.
    if (!this.subscription || this.asked !== app.filter()) { this.path = ''; this.opened(); }
    const t = app.model.topics.get(this.path);
    const cut = this.path.lastIndexOf('/') + 1;
    const name = `${this.path}${this.isBranch ? '/#' : ''}`;
    if (this.title.textContent !== name) this.title.replaceChildren(h('span', { class: 'quiet', text: line(name.slice(0, cut), 120) }), h('b', { text: line(name.slice(cut), 120) }));
    const r = this.current();
    const publisher = r?.origin ? (app.origins.get(r.origin) ?? `${r.origin.slice(0, 8)}…`) : undefined;
    const branch = app.model.branch(this.path);
    const chips = [r ? `QoS ${r.qos}` : '', r?.retain ? 'retained' : '', branch ? `${rate(branch.rate)}/s` : '', publisher ? `from ${publisher}` : ''].filter((c) => c !== '');
    if (this.chips.textContent !== chips.join('')) this.chips.replaceChildren(...chips.map((c) => h('span', { class: 'chip', text: line(c, 60) })));
    if (this.field === '' && r && !this.isBranch) this.field = t?.field ?? '';
    this.#chart();
    this.#payload(r);
    this.life.update(r);
    this.#rows();
    this.#fields(r);
  }

  #chart() {
    if (this.isBranch) return attr(this.chartBox, 'data-empty', true);
    const leaf = this.current() && fields(/** @type {Rec} */ (this.current())).get(this.field);
    attr(this.chartBox, 'data-empty', leaf === undefined);
    if (!leaf) return;
    if (!this.series || this.series.field !== this.field || this.series.topic !== this.path) {
      this.chart?.close();
      this.series = new Series(this.app, this.path, this.field);
      this.chart = leaf.number === undefined ? new StateChart(this.app, this.chartBox, [this.series])
        : new LineChart(this.app, this.chartBox, [this.series], { height: 160, title: `${this.field || 'value'} over ${this.#rangeName()}` });
    }
    this.chart?.update();
  }

  #rangeName() {
    const { range } = this.app;
    return range === 0 ? 'the whole log' : range < 3600_000 ? `${range / 60_000} m` : `${range / 3600_000} h`;
  }

  /** @param {Rec | undefined} r */
  #payload(r) {
    const key = r ? `${r.name} ${r.offset} ${this.way} ${r.bytes} ${r.text?.length ?? r.base64?.length}` : '';
    if (key === this.shown) return;
    this.shown = key;
    attr(this.more, 'hidden', true);
    if (!r) { this.payload.replaceChildren(); this.#choices([]); set(this.payloadTitle, ''); return; }
    const fit = ways(r);
    const way = fit.includes(this.way) ? this.way : (fit[0] ?? 'Hex');
    [this.fit, this.wayShown] = [fit, way];
    const all = [...new Set(['JSON', 'Text', ...fit])];
    this.#choices(all);
    set(this.payloadTitle, bytes(r.bytes));
    const held = bytesOf(r).length;
    if (held < r.bytes) {
      set(this.more, `${bytes(held)} shown of ${bytes(r.bytes)}: read all`);
      attr(this.more, 'hidden', false);
    }
    const at = this.history.indexOf(r);
    const before = this.history.slice(at + 1).find((one) => one.topic === r.topic);
    try {
      if (way === 'JSON') this.payload.replaceChildren(...tree(written(r), before ? written(before) : undefined, 0));
      else if (way === 'Text') set(this.payload, r.text ?? '');
      else if (way === 'CBOR') set(this.payload, JSON.stringify(cbor(bytesOf(r)), null, 2));
      else if (way === 'Sparkplug') set(this.payload, JSON.stringify(sparkplug(bytesOf(r)), null, 2));
      else set(this.payload, hex(bytesOf(r)));
    } catch (e) {
      set(this.payload, `It cannot be read as ${way}: ${e instanceof Error ? e.message : String(e)}.`);
    }
    if (this.payload.textContent === '') set(this.payload, r.bytes === 0 ? '(empty)' : '');
  }

  /** @param {string[]} all */
  #choices(all) {
    keyed(this.choice, all, (w) => w, (w) => {
      const el = h('button', { type: 'button', text: w, onclick: () => { this.way = w; this.app.dirty(); } });
      const update = () => {
        attr(el, 'disabled', !this.fit.includes(w));
        attr(el, 'aria-pressed', String(w === this.wayShown));
      };
      return { el, update };
    });
  }

  async #whole() {
    const r = this.current();
    if (!r) return;
    set(this.more, 'reading…');
    const whole = await this.app.record(r.name, r.offset);
    if (!whole) { set(this.more, 'It is not there any more.'); return; }
    // A megabyte of text is more than a page lays out well; the rest is in `weir log cat`.
    const most = 256 * 1024;
    if (whole.text !== null) r.text = whole.text.slice(0, most);
    else r.base64 = whole.base64.slice(0, most);
    this.shown = '';
    this.app.dirty();
  }

  #rows() {
    const { app } = this;
    const branch = this.isBranch;
    const numeric = !branch && this.current() ? fields(/** @type {Rec} */ (this.current())).get(this.field)?.number !== undefined : false;
    const columns = branch ? ['Received', 'Offset', 'Topic', 'Payload'] : numeric ? ['Received', 'Offset', this.field || 'value', 'Change', 'Payload'] : ['Received', 'Offset', 'Payload'];
    attr(this.head, 'data-columns', branch ? 'branch' : numeric ? 'number' : 'text');
    if (this.head.textContent !== columns.join('')) this.head.replaceChildren(...columns.map((c, i) => h('span', { text: c, class: numeric && (i === 2 || i === 3) ? 'n' : '' })));
    set(this.note, this.history.length === 0 ? (app.playhead.mode === 'live' ? 'Nothing yet.' : 'Nothing before this moment.') : '');
    this.inner.style.height = `${this.history.length * ROW}px`;
    // The chosen record stays where it is on the screen while others come above it.
    const chosenAt = this.selected ? this.history.indexOf(this.selected) : -1;
    if (chosenAt > this.chosenAt && this.chosenAt >= 0) this.rows.scrollTop += (chosenAt - this.chosenAt) * ROW;
    this.chosenAt = chosenAt;
    set(this.when, this.selected ? 'Chosen' : app.playhead.mode === 'live' ? 'Now' : 'Then');
    const first = Math.max(0, Math.floor(this.rows.scrollTop / ROW));
    const n = Math.min(this.history.length - first, Math.ceil(this.rows.clientHeight / ROW) + 1);
    while (this.pool.length < n) {
      const el = h('div', { class: 'trow', role: 'option' }, ...Array.from({ length: 5 }, () => h('span')));
      el.addEventListener('click', () => this.#choose(Number(el.dataset.at)));
      this.pool.push(el);
      this.inner.append(el);
    }
    const now = app.now();
    for (const [i, el] of this.pool.entries()) {
      const r = i < n ? this.history[first + i] : undefined;
      attr(el, 'hidden', !r);
      if (!r) continue;
      el.dataset.at = String(first + i);
      el.style.transform = `translateY(${(first + i) * ROW}px)`;
      attr(el, 'data-columns', branch ? 'branch' : numeric ? 'number' : 'text');
      attr(el, 'aria-selected', String(r === this.current()));
      const v = numeric ? fields(r).get(this.field)?.number : undefined;
      const before = numeric ? this.history[first + i + 1] : undefined;
      const past = before ? fields(before).get(this.field)?.number : undefined;
      const change = v !== undefined && past !== undefined ? `${v >= past ? '+' : '−'}${digits(Math.abs(v - past))}` : '';
      const at = now - r.time > 20 * 3600_000 ? when(r.time, now) : clockMs(r.time);
      const cells = branch ? [at, count(r.offset), r.topic.slice(this.path.length + 1) || r.topic, short(r)] : numeric ? [at, count(r.offset), v === undefined ? '–' : value(v), change, short(r)] : [at, count(r.offset), short(r)];
      for (const [j, cell] of [...el.children].entries()) {
        set(cell, line(cells[j] ?? '', 160));
        attr(cell, 'hidden', cells[j] === undefined);
        attr(cell, 'class', numeric && (j === 2 || j === 3) ? 'n' : null);
      }
    }
  }

  /** @param {number} at */
  #choose(at) {
    const r = this.history[at];
    if (!r) return;
    this.selected = at === 0 && this.app.playhead.mode === 'live' ? undefined : r;
    this.app.dirty();
  }

  /** @param {KeyboardEvent} e */
  #key(e) {
    const at = this.history.indexOf(/** @type {Rec} */ (this.current()));
    if (e.key === 'ArrowDown') this.#choose(Math.min(this.history.length - 1, at + 1));
    else if (e.key === 'ArrowUp') this.#choose(Math.max(0, at - 1));
    else if (e.key === 'Enter') { const r = this.current(); if (r) this.app.seekFrom(r.time + 1); }
    else return;
    const top = Math.max(0, this.history.indexOf(/** @type {Rec} */ (this.current()))) * ROW;
    if (top < this.rows.scrollTop) this.rows.scrollTop = top;
    else if (top + ROW > this.rows.scrollTop + this.rows.clientHeight) this.rows.scrollTop = top + ROW - this.rows.clientHeight;
    e.preventDefault();
    e.stopPropagation();
  }

  /** @param {Rec | undefined} r */
  #fields(r) {
    const all = r ? [...fields(r)] : [];
    const key = `${JSON.stringify(all)} ${this.field} ${[...this.extremes.values()].map((e) => `${e.low}${e.high}`)} ${this.app.charts.length}`;
    if (key === this.drawn) return;
    this.drawn = key;
    keyed(this.fieldRows, all, ([name]) => name, ([name]) => this.#fieldRow(name));
  }

  /** @param {string} name */
  #fieldRow(name) {
    const { app } = this;
    const choose = () => { if (!this.isBranch) { this.field = name; app.dirty(); } };
    const chart = (/** @type {Event} */ e) => {
      e.stopPropagation();
      const r = this.current();
      if (r) app.toggleChart(r.topic, name);
    };
    const kind = h('span', { class: 'quiet' });
    const add = h('button', { type: 'button', class: 'link add', 'aria-label': `Chart ${name}`, onclick: chart });
    const [now, low, high] = ['n', 'n quiet', 'n quiet'].map((c) => h('td', { class: c }));
    const el = h('tr', { onclick: choose }, h('td', {}, h('button', { type: 'button', class: 'link', text: name || 'value' }), ' ', kind, ' ', add), now, low, high);
    const update = (/** @type {[string, import('./payload.js').Leaf]} */ [, leaf]) => {
      const e = this.extremes.get(name);
      const charted = app.charts.some((c) => c.topic === this.current()?.topic && c.field === name);
      attr(el, 'aria-selected', String(name === this.field && !this.isBranch));
      set(kind, leaf.number === undefined ? 'text' : 'number');
      attr(add, 'title', charted ? 'Take it out of the charts' : 'Chart it beside others');
      set(add, charted ? '−' : '+');
      if (now) set(now, leaf.number === undefined ? line(leaf.state ?? '', 20) : value(leaf.number));
      if (low) set(low, e ? value(e.low) : '–');
      if (high) set(high, e ? value(e.high) : '–');
    };
    return { el, update };
  }
}

/** Without the noise of binary fractions, and without zeros that nobody wrote. @param {number} v */
const digits = (v) => String(Number(v.toPrecision(6)));

/** As many decimals as the two have. @param {number} a @param {number} b @param {string[]} sources */
function difference(a, b, sources) {
  const by = Math.abs(a - b);
  return sources.some((s) => /e/i.test(s)) ? digits(by) : by.toFixed(Math.min(20, Math.max(...sources.map((s) => (s.split('.')[1] ?? '').length))));
}

/**
 * JSON as text, what changed against the record before it marked.
 * @param {any} v @param {any} before @param {number} depth @returns {Node[]}
 */
function tree(v, before, depth) {
  const text = (/** @type {string} */ s) => document.createTextNode(s);
  if (v === null || typeof v !== 'object' || v instanceof Digits) {
    const s = typeof v === 'string' ? JSON.stringify(v) : String(v);
    const plain = (/** @type {any} */ one) => (one instanceof Digits ? one.number : one);
    const written = (/** @type {any} */ one) => (one instanceof Digits ? one.source : one);
    const [now, was] = [plain(v), plain(before)];
    const changed = was !== undefined && written(before) !== written(v);
    const delta = changed && typeof now === 'number' && typeof was === 'number' ? ` ${now >= was ? '+' : '−'}${difference(now, was, [v, before].map(String))}` : '';
    return [h(changed ? 'mark' : 'span', { text: s.length > 4000 ? `${s.slice(0, 4000)}…` : s }), ...(delta ? [h('span', { class: 'quiet', text: delta })] : [])];
  }
  const list = Array.isArray(v);
  const keys = Object.keys(v).slice(0, 500);
  if (keys.length === 0) return [text(list ? '[]' : '{}')];
  if (depth > 20) return [text('…')];
  const pad = '  '.repeat(depth + 1);
  /** @type {Node[]} */
  const out = [text(list ? '[\n' : '{\n')];
  for (const [i, k] of keys.entries()) {
    out.push(text(pad));
    if (!list) out.push(h('span', { class: 'quiet', text: `${JSON.stringify(k)}: ` }));
    const was = before !== null && typeof before === 'object' ? before[k] : undefined;
    out.push(...tree(v[k], was, depth + 1), text(i + 1 < keys.length ? ',\n' : '\n'));
  }
  out.push(text(`${'  '.repeat(depth)}${list ? ']' : '}'}`));
  return out;
}
