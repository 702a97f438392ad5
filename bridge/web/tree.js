// The tree of topics: rows of one height, and only those on the screen in the document, whatever their number.

import { begin, token } from './draw.js';
import { attr, h, line, rate, set, span, value } from './format.js';
import { SPARK } from './model.js';
import { fields, short } from './payload.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./model.js').Topic} Topic */
/** @typedef {import('./model.js').TreeRow} TreeRow */

/** A topic is late when so many of its intervals have passed. */
const LATE = 6;

class Row {
  /** @param {Tree} tree */
  constructor(tree) {
    this.twist = h('span', { class: 'twist', 'aria-hidden': 'true' });
    this.name = h('span', { class: 'name' });
    this.retained = h('span', { class: 'badge', text: 'R', title: 'retained' });
    this.spark = h('canvas', { class: 'spark', 'aria-hidden': 'true' });
    this.field = h('span', { class: 'field' });
    this.value = h('span', { class: 'value' });
    this.age = h('span', { class: 'age' });
    this.dot = h('button', { type: 'button', class: 'dot', tabindex: '-1' });
    this.el = h('div', { class: 'row', role: 'treeitem' }, this.twist, h('span', { class: 'label' }, this.name, this.retained), this.spark,
      h('span', { class: 'reading' }, this.field, this.value), this.age, this.dot);
    this.at = -1;
    this.el.addEventListener('click', () => tree.choose(this.at));
    this.twist.addEventListener('click', (e) => { e.stopPropagation(); tree.toggle(this.at); });
    this.dot.addEventListener('click', (e) => { e.stopPropagation(); tree.chart(this.at); });
    this.drawn = '';
  }
}

export class Tree {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.title = h('h2');
    this.number = h('span', { class: 'quiet' });
    this.tabs = h('div', { class: 'choice phone', role: 'group', 'aria-label': 'What is shown' },
      ...['Topics', 'Charts'].map((name) => h('button', { type: 'button', text: name, onclick: () => { document.body.dataset.part = name.toLowerCase(); this.update(); app.dirty(); } })));
    this.inner = h('div', { class: 'inner' });
    this.scroller = h('div', { class: 'rows', role: 'tree', tabindex: '0', 'aria-label': 'Topics' }, this.inner);
    root.append(h('div', { class: 'head' }, this.title, this.number, this.tabs), this.scroller);
    /** @type {Row[]} */
    this.pool = [];
    /** @type {TreeRow[]} */
    this.rows = [];
    this.shape = -1;
    this.opened = 0;
    this.cursor = 0;
    this.scroller.addEventListener('scroll', () => this.update());
    this.scroller.addEventListener('keydown', (e) => this.#key(e));
    new ResizeObserver(() => this.update()).observe(this.scroller);
    /** @type {Set<Topic>} */
    this.asking = new Set();
  }

  get height() { return window.innerWidth < 760 ? 44 : 28; }

  /** Rows anew when topics came or a branch was opened. */
  #layout() {
    const shape = this.app.model.shape * 1000 + this.opened;
    if (shape === this.shape) return;
    // What is in sight stays where it is.
    const first = this.rows[Math.floor(this.scroller.scrollTop / this.height)]?.branch;
    const chosen = this.rows[this.cursor]?.branch;
    this.shape = shape;
    this.rows = this.app.model.rows();
    this.inner.style.height = `${this.rows.length * this.height}px`;
    if (chosen) this.cursor = Math.max(0, this.rows.findIndex((r) => r.branch === chosen));
    if (first && this.scroller.scrollTop > 0) {
      const at = this.rows.findIndex((r) => r.branch === first);
      if (at >= 0) this.scroller.scrollTop = at * this.height + (this.scroller.scrollTop % this.height);
    }
  }

  update() {
    const { app } = this;
    this.#layout();
    const past = app.playhead.mode !== 'live';
    const clock = new Date(app.playhead.time).toLocaleTimeString('en-GB');
    set(this.title, past ? `Topics at ${clock}` : 'Topics');
    attr(this.title, 'data-kind', past ? 'past' : null);
    const n = app.model.topics.size;
    set(this.number, `${n}${app.model.leftOut ? '+' : ''} ${n === 1 ? 'topic' : 'topics'}`);
    for (const b of this.tabs.children) attr(b, 'aria-pressed', String((document.body.dataset.part ?? 'topics') === b.textContent?.toLowerCase()));
    const height = this.height;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height));
    const shown = Math.min(this.rows.length - first, Math.ceil(this.scroller.clientHeight / height) + 1);
    while (this.pool.length < shown) {
      const row = new Row(this);
      this.pool.push(row);
      this.inner.append(row.el);
    }
    for (const [i, row] of this.pool.entries()) {
      const at = first + i;
      const data = i < shown ? this.rows[at] : undefined;
      attr(row.el, 'hidden', data === undefined);
      if (data) this.#row(row, data, at, past);
    }
    const active = this.pool.find((r) => r.at === this.cursor && !r.el.hidden);
    attr(this.scroller, 'aria-activedescendant', active ? active.el.id : null);
  }

  /** @param {Row} row @param {TreeRow} data @param {number} at @param {boolean} past */
  #row(row, { branch, depth, label, nth, of }, at, past) {
    const { app } = this;
    row.at = at;
    const { el } = row;
    attr(el, 'id', `row-${at}`);
    const top = `translateY(${at * this.height}px)`;
    if (el.style.transform !== top) el.style.transform = top;
    const indent = `${depth * 14}px`;
    if (el.style.getPropertyValue('--indent') !== indent) el.style.setProperty('--indent', indent);
    attr(el, 'aria-level', depth + 1);
    attr(el, 'aria-posinset', nth);
    attr(el, 'aria-setsize', of);
    const leaf = branch.children.size === 0;
    attr(el, 'aria-expanded', leaf ? null : String(branch.open));
    attr(el, 'aria-selected', String(app.topic === branch.path && (app.view === 'topic')));
    attr(el, 'data-cursor', at === this.cursor);
    set(row.twist, leaf ? '' : branch.open ? '▾' : '▸');
    set(row.name, line(label, 200) || '(empty)');
    attr(el, 'title', branch.path);
    const t = branch.topic;
    attr(el, 'data-branch', t === undefined);
    if (!t) {
      attr(row.retained, 'hidden', true);
      attr(row.spark, 'hidden', true);
      attr(row.dot, 'hidden', true);
      set(row.field, '');
      set(row.value, `${branch.topics} ${branch.topics === 1 ? 'topic' : 'topics'}`);
      // How fast they come is of now.
      set(row.age, past || branch.rate === 0 ? '' : `${rate(branch.rate)}/s`);
      attr(row.age, 'data-kind', null);
      attr(el, 'data-dim', null);
      return;
    }
    const r = past ? t.then : t.live;
    attr(row.retained, 'hidden', !r?.retain);
    attr(el, 'data-dim', r === undefined);
    const number = t.number(r);
    set(row.field, number === undefined || !t.field ? '' : t.field.slice(0, 12));
    set(row.value, r === undefined ? 'not yet' : number !== undefined ? value(number) : line(this.#state(t, r), 40) || '(empty)');
    const now = past ? app.playhead.time : app.now();
    const age = r ? Math.max(0, now - r.time) : 0;
    set(row.age, r ? span(age).replace('.0 s', ' s') : '');
    const late = !past && r !== undefined && t.count > 2 && t.interval > 0 && age > t.interval * LATE && age > 2000;
    attr(row.age, 'data-kind', late ? 'behind' : null);
    const series = app.charts.findIndex((c) => c.topic === t.name);
    attr(row.dot, 'hidden', false);
    attr(row.dot, 'data-series', series < 0 ? null : (series % 4) + 1);
    attr(row.dot, 'aria-label', series < 0 ? `Chart ${t.name}` : `Take ${t.name} out of the charts`);
    const hasSpark = number !== undefined;
    attr(row.spark, 'hidden', !hasSpark);
    if (hasSpark) this.#spark(row, t);
  }

  /** @param {Topic} t @param {import('./model.js').Rec} r */
  #state(t, r) {
    return (t.field === undefined ? undefined : fields(r).get(t.field)?.state) ?? short(r);
  }

  /** @param {Row} row @param {Topic} t */
  #spark(row, t) {
    const { app } = this;
    const [from, to] = app.window();
    const range = app.range || to - from;
    if (!t.spark || Math.abs(t.spark.range - range) > range / 10) this.#ask(t, range);
    const s = t.spark;
    const text = s ? `${s.at} ${s.values.join()} ${app.theme}` : '';
    if (row.drawn === text + t.name) return;
    const canvas = begin(row.spark);
    if (!canvas || !s) return;
    row.drawn = text + t.name;
    const known = s.values.filter((v) => v !== undefined);
    if (known.length === 0) return;
    const { c, width, height } = canvas;
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const y = (/** @type {number} */ v) => (high === low ? height / 2 : height - 3 - ((v - low) / (high - low)) * (height - 6));
    c.strokeStyle = token('ink2');
    c.lineWidth = 1.2;
    c.beginPath();
    let drawn = false;
    for (const [i, v] of s.values.entries()) {
      if (v === undefined) continue;
      const x = (i / (SPARK - 1)) * (width - 2) + 1;
      if (drawn) c.lineTo(x, y(v));
      else c.moveTo(x, y(v));
      drawn = true;
    }
    c.stroke();
  }

  /**
   * The past of a sparkline, from the log, a few at a time.
   * @param {Topic} t @param {number} range
   */
  #ask(t, range) {
    const { app } = this;
    if (this.asking.size >= 6 || this.asking.has(t) || app.away) return;
    this.asking.add(t);
    const step = Math.max(1000, Math.round(range / SPARK));
    const end = Math.floor(app.now() / step);
    const field = t.field ?? '';
    const done = () => { this.asking.delete(t); };
    app.feed.subscribe({ filter: t.name, from: `time:${new Date((end - SPARK) * step).toISOString()}`, until: 'latest', step: `${step}ms`, field }, {
      steps: (s) => {
        const values = /** @type {(number | undefined)[]} */ (new Array(SPARK).fill(undefined));
        for (const p of s.series[0]?.points ?? []) {
          const at = SPARK - 1 - (end - Math.floor((p[0] ?? 0) / step));
          if (at >= 0 && at < SPARK) values[at] = p[3];
        }
        t.spark = { range, step, at: end, values };
        if (t.live) app.model.spark(t, t.live);
      },
      end: done,
      error: done,
    });
  }

  /** @param {number} at */
  choose(at) {
    const row = this.rows[at];
    if (!row) return;
    this.cursor = at;
    if (!row.branch.topic && row.branch.children.size > 0 && !(this.app.view === 'topic')) return this.toggle(at);
    this.app.openTopic(row.branch.path);
  }

  /** @param {number} at */
  toggle(at) {
    const row = this.rows[at];
    if (!row || row.branch.children.size === 0) return;
    row.branch.open = !row.branch.open;
    this.cursor = at;
    this.opened += 1;
    this.update();
  }

  /** @param {number} at */
  chart(at) {
    const t = this.rows[at]?.branch.topic;
    if (t) this.app.toggleChart(t.name, t.field ?? '');
  }

  /** Shows a topic's row. @param {string} path */
  reveal(path) {
    let b = this.app.model.branch(path);
    for (b = b?.parent ?? undefined; b; b = b.parent ?? undefined) b.open = true;
    this.opened += 1;
    this.#layout();
    const at = this.rows.findIndex((r) => r.branch.path === path);
    if (at < 0) return;
    this.cursor = at;
    this.#inSight();
    this.update();
  }

  #inSight() {
    const [top, height] = [this.cursor * this.height, this.scroller.clientHeight];
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + this.height > this.scroller.scrollTop + height) this.scroller.scrollTop = top + this.height - height;
  }

  /** @param {KeyboardEvent} e */
  #key(e) {
    const row = this.rows[this.cursor];
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height) - 1);
    if (e.ctrlKey || e.metaKey || e.altKey || e.shiftKey) return;
    if (e.key === 'ArrowDown') this.cursor = Math.min(this.rows.length - 1, this.cursor + 1);
    else if (e.key === 'ArrowUp') this.cursor = Math.max(0, this.cursor - 1);
    else if (e.key === 'PageDown') this.cursor = Math.min(this.rows.length - 1, this.cursor + page);
    else if (e.key === 'PageUp') this.cursor = Math.max(0, this.cursor - page);
    else if (e.key === 'ArrowRight' && row && row.branch.children.size > 0 && !row.branch.open) this.toggle(this.cursor);
    else if (e.key === 'ArrowLeft' && row?.branch.open && row.branch.children.size > 0) this.toggle(this.cursor);
    else if (e.key === 'ArrowLeft' && row) {
      const parent = this.rows.slice(0, this.cursor).findLastIndex((r) => r.depth < row.depth);
      if (parent >= 0) this.cursor = parent;
    } else if (e.key === 'Enter') this.app.openTopic(row?.branch.path ?? '');
    else if (e.key === 'c' || e.key === 'C') this.chart(this.cursor);
    else return;
    e.preventDefault();
    e.stopPropagation();
    this.#inSight();
    this.update();
  }
}
