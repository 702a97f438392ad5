// What the page knows of the log: topics with their newest records, live and at the playhead, and how fast they come. Bounded per topic; what is older is asked of the log again.

import { fields, mainField } from './payload.js';

/** @typedef {{ branch: Branch, depth: number, label: string, nth: number, of: number }} TreeRow */
/** @typedef {import('./client.js').FeedRecord} FeedRecord */
/** @typedef {import('./client.js').Where} Where */
/** @typedef {FeedRecord & { name: string }} Rec `name`: stream/partition. */

/** As people sort: room-2 before room-10. */
export const byName = new Intl.Collator('en', { numeric: true }).compare;
/** Points of a sparkline. */
export const SPARK = 44;
/** Topics that are held; beyond them new ones are only counted. */
const TOPICS_MAX = 200_000;

export class Topic {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    /** @type {Rec | undefined} newest */
    this.live = undefined;
    /** @type {Rec | undefined} newest at the playhead */
    this.then = undefined;
    /** Milliseconds between records, smoothed; 0: not known. */
    this.interval = 0;
    /** Records since the page was opened. */
    this.count = 0;
    /** @type {string | undefined} */
    this.field = undefined;
    /** @type {{ range: number, step: number, at: number, values: (number | undefined)[] } | undefined} */
    this.spark = undefined;
  }

  /** The number that stands for a record. @param {Rec | undefined} r */
  number(r) {
    if (!r || this.field === undefined) return undefined;
    return fields(r).get(this.field)?.number;
  }
}

export class Branch {
  /** @param {string} label @param {string} path @param {Branch | null} parent */
  constructor(label, path, parent) {
    this.label = label;
    this.path = path;
    this.parent = parent;
    /** @type {Map<string, Branch>} */
    this.children = new Map();
    /** @type {Branch[] | undefined} by name */
    this.sorted = undefined;
    /** @type {Topic | undefined} */
    this.topic = undefined;
    this.open = false;
    /** Topics below and here. */
    this.topics = 0;
    this.hits = 0;
    this.rate = 0;
  }

  byName() {
    this.sorted ??= [...this.children.values()].sort((a, b) => byName(a.label, b.label));
    return this.sorted;
  }
}

export class Model {
  constructor() {
    /** @type {Map<string, Topic>} */
    this.topics = new Map();
    this.root = new Branch('', '', null);
    this.root.open = true;
    /** Topics that were not taken. */
    this.leftOut = 0;
    /** Grows with every new topic. */
    this.shape = 0;
    this.thinned = 0;
    this.told = 0;
    /** @type {Map<string, Branch>} */
    this.leaves = new Map();
    this.lastRates = performance.now();
  }

  /** @param {string} name */
  topic(name) {
    let t = this.topics.get(name);
    if (t) return t;
    if (this.topics.size >= TOPICS_MAX) { this.leftOut += 1; return undefined; }
    t = new Topic(name);
    this.topics.set(name, t);
    this.shape += 1;
    let at = this.root;
    let path = '';
    for (const level of name.split('/')) {
      path = path === '' && at === this.root ? level : `${path}/${level}`;
      let next = at.children.get(level);
      if (!next) {
        next = new Branch(level, path, at);
        // Nothing is hidden from who looks for the first time.
        next.open = at === this.root ? this.root.children.size < 8 : this.topics.size < 60;
        at.children.set(level, next);
        at.sorted = undefined;
      }
      at = next;
    }
    at.topic = t;
    this.leaves.set(name, at);
    for (let up = /** @type {Branch | null} */ (at); up; up = up.parent) up.topics += 1;
    return t;
  }

  /**
   * The newest of a topic, as a snapshot has it.
   * @param {FeedRecord} r @param {string} name
   */
  snapshot(r, name) {
    const t = this.topic(r.topic);
    if (!t || (t.live && t.live.name === name && t.live.offset >= r.offset)) return;
    t.live = { ...r, name };
    t.field ??= mainField(fields(t.live));
  }

  /**
   * A record as it comes.
   * @param {FeedRecord} r @param {string} name
   */
  take(r, name) {
    const t = this.topic(r.topic);
    if (!t) return undefined;
    const before = t.live;
    if (before && before.name === name && before.offset >= r.offset) return undefined;
    const rec = { ...r, name };
    t.live = rec;
    t.count += 1;
    if (before) {
      const gap = Math.max(0, r.time - before.time);
      t.interval = t.interval === 0 ? gap : t.interval + (gap - t.interval) / 8;
    }
    if (t.field === undefined) t.field = mainField(fields(rec));
    if (t.spark) this.spark(t, rec);
    for (let up = this.leaves.get(r.topic) ?? null; up; up = up.parent) up.hits += 1;
    return t;
  }

  /** @param {Topic} t @param {Rec} r */
  spark(t, r) {
    const s = t.spark;
    const v = t.number(r);
    if (!s || v === undefined) return;
    const at = Math.floor(r.time / s.step);
    while (s.at < at) {
      s.values.shift();
      s.values.push(undefined);
      s.at += 1;
      if (at - s.at > SPARK) s.at = at - 1;
    }
    if (at === s.at) s.values[SPARK - 1] = v;
  }

  /** Rates of all branches, once a second. */
  rates() {
    const now = performance.now();
    const seconds = (now - this.lastRates) / 1000;
    if (seconds < 1) return;
    this.lastRates = now;
    const smooth = (/** @type {Branch} */ b) => {
      if (b.hits === 0 && b.rate === 0) return;
      const rate = b.hits / seconds;
      b.hits = 0;
      b.rate = b.rate === 0 ? rate : b.rate + (rate - b.rate) * 0.3;
      if (b.rate < 0.005) b.rate = 0;
      for (const child of b.children.values()) smooth(child);
    };
    smooth(this.root);
  }

  /**
   * Rows of the tree: branches with one child and no topic fold into one row. `nth` of `of` on its level, from 1.
   * @returns {TreeRow[]}
   */
  rows() {
    /** @type {TreeRow[]} */
    const rows = [];
    const add = (/** @type {Branch} */ b, /** @type {number} */ depth) => {
      const all = b.byName();
      for (const [i, child] of all.entries()) {
        let [last, label] = [child, child.label];
        while (!last.topic && last.children.size === 1) {
          const [only] = last.children.values();
          if (!only) break;
          last = only;
          label += `/${last.label}`;
        }
        rows.push({ branch: last, depth, label, nth: i + 1, of: all.length });
        if (last.open && last.children.size > 0) add(last, depth + 1);
      }
    };
    add(this.root, 0);
    return rows;
  }

  /** @param {string} path */
  branch(path) {
    let at = this.root;
    for (const level of path.split('/')) {
      const next = at.children.get(level);
      if (!next) return undefined;
      at = next;
    }
    return at;
  }
}
