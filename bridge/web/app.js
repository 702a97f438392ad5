// The page: one playhead over the log, and every view a function of it.

import { Admin } from './admin.js';
import { Feed } from './client.js';
import { Charts } from './charts.js';
import { Clients } from './clients.js';
import { themeChanged } from './draw.js';
import { Export } from './export.js';
import { Figures } from './figures.js';
import { FirstRun } from './first.js';
import { attr, set } from './format.js';
import { Keys } from './keys.js';
import { LogView } from './logview.js';
import { byName, Model } from './model.js';
import { fields } from './payload.js';
import { Banner } from './banner.js';
import { Publisher } from './publish.js';
import { Refusals } from './refusals.js';
import { Search } from './search.js';
import { RANGES, Strip } from './strip.js';
import { TopicView } from './topic.js';
import { Tree } from './tree.js';
import { Urgent } from './urgent.js';

/** @typedef {import('./client.js').FeedRecord} FeedRecord */
/** @typedef {import('./client.js').Where} Where */
/** @typedef {'live' | 'topic' | 'clients' | 'log' | 'refusals'} View */
/** @typedef {{ mode: 'live' | 'past' | 'replay', time: number, speed: number, offsets: Map<string, number> }} Playhead `offsets`: by partition, what lies before was written before. */
/** @typedef {{ time: number, kind: string, client: string, data: any, name: string, offset: number }} LogEvent */
/** @typedef {{ stream: string, partition: number, next: number, end: number, live: boolean, behind_ms: number | null, start: number, loss_at_ms: number | null }} Place */
/** @typedef {{ client_id: string, connected: boolean, version: string, expiry_s: number | null, has_will: boolean, subscriptions: { filter: string, qos: number }[], places: Place[], in_flight: number, in_flight_max: number, oldest_in_flight: number | null, unacknowledged: number }} Session */
/** @typedef {{ from: number, to: number | undefined, lost: boolean }} Outage */

/** Of each kind at most. */
const EVENTS_MAX = 2000;
const SESSIONS_MAX = 2000;
const CHARTS_MAX = 12;

export class App {
  constructor() {
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    this.feed = new Feed(`${scheme}://${location.host}/ws`);
    this.model = new Model();
    /** @type {any} */
    this.figures = undefined;
    /** The moment of the address, until it can be gone to. @type {number | undefined} */
    this.wanted = undefined;
    /** @type {Playhead} */
    this.playhead = { mode: 'live', time: 0, speed: 1, offsets: new Map() };
    /** Length of the window, ms; 0: the whole log. */
    this.range = 300_000;
    /** Somebody chose it. */
    this.rangeSaid = false;
    /** @type {[number, number] | undefined} while the playhead is in the past */
    this.pinned = undefined;
    /** @type {View} */
    this.view = 'live';
    this.topic = '';
    /** @type {{ topic: string, field: string }[]} */
    this.charts = [];
    this.chosen = false;
    /** @type {LogEvent[]} */
    this.events = [];
    /** @type {Session[]} */
    this.sessions = [];
    /** @type {Map<string, any>} by client id */
    this.clients = new Map();
    /** @type {Map<string, string>} client ids by their hashes */
    this.origins = new Map();
    /** @type {import('./groups.js').Group[]} */
    this.groups = [];
    /** @type {any[]} */
    this.streams = [];
    /** @type {any} */
    this.about = undefined;
    /** @type {Outage[]} */
    this.outages = [];
    this.away = false;
    this.lastSeen = 0;
    /** Records since the playhead left the end. */
    this.since = 0;
    this.loaded = false;
    this.theme = '';
    this.openedAt = performance.now();
    this.treeDrawn = 0;
    this.polled = 0;
    this.polls = 0;
    this.soon = false;
    /** @type {((r: FeedRecord, where: Where) => void)[]} */
    this.listeners = [];

    const $ = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));
    this.admin = new Admin(this);
    this.export = new Export(this);
    this.figureBar = new Figures(this, $('figures'));
    this.banner = new Banner(this, $('banner'));
    this.strip = new Strip(this, $('strip'));
    this.tree = new Tree(this, $('tree'));
    this.urgent = new Urgent(this, $('urgent'));
    this.chartGrid = new Charts(this, $('charts'));
    this.first = new FirstRun(this, $('first'));
    this.topicView = new TopicView(this, $('topic'));
    this.clientsView = new Clients(this, $('clients'));
    this.logView = new LogView(this, $('log'));
    this.refusalsView = new Refusals(this, $('refusals'));
    this.search = new Search(this, $('search'));
    this.publisher = new Publisher(this);
    this.keys = new Keys(this);
    for (const b of document.querySelectorAll('nav [data-view]')) b.addEventListener('click', () => this.show(/** @type {View} */ (b.getAttribute('data-view'))));
    for (const b of document.querySelectorAll('[data-act=theme]')) b.addEventListener('click', () => this.nextTheme());
    for (const b of document.querySelectorAll('[data-act=publish]')) b.addEventListener('click', () => this.publisher.open());
    for (const b of document.querySelectorAll('[data-act=find]')) b.addEventListener('click', () => this.search.open());
    for (const b of document.querySelectorAll('[data-act=help]')) b.addEventListener('click', () => this.keys.help());
    this.#theme(localStorage.getItem('theme') ?? '');
    this.#listen();
    this.#readAddress();
    window.addEventListener('hashchange', () => this.#readAddress());
    document.addEventListener('visibilitychange', () => this.dirty());
    setInterval(() => this.#fast(), 100);
    setInterval(() => this.#slow(), 500);
    setInterval(() => this.#poll(), 2000);
    this.#poll();
  }

  // What comes.

  #listen() {
    const { feed } = this;
    feed.onconnection = (c) => {
      const away = c.state === 'away';
      if (away && !this.away) {
        this.lastSeen = this.now();
        this.outages = [...this.outages.slice(-19), { from: this.lastSeen, to: undefined, lost: false }];
      }
      if (!away && this.away) {
        const outage = this.outages.at(-1);
        if (outage) outage.to = Math.max(this.now(), outage.from);
      }
      this.away = away;
      this.banner.connection(c);
      this.dirty();
    };
    feed.figures((f) => { this.figures = f; this.#seekWanted(); }, 1);
    feed.subscribe({ filter: '#', latest_only: true, rate_max: 10 }, {
      start: (where, more) => this.banner.start(where, more),
      snapshot: (records, where, done) => {
        for (const r of records) this.model.snapshot(r, where.name);
        if (done) { this.loaded = true; this.#defaultCharts(); }
        this.dirty();
      },
      records: (records, where, thinned) => {
        this.model.thinned += thinned;
        this.model.told += records.length;
        this.banner.records(records.length + thinned, where);
        for (const r of records) this.#record(r, where, thinned);
        this.loaded = true;
        this.#soon();
      },
      lost: (lost, where) => this.banner.lost(lost, where),
      error: (message) => this.banner.say('bad', 'The feed has ended', message),
    }, 2);
    feed.subscribe({ filter: '$SYS/events/#', from: `last:${EVENTS_MAX}` }, {
      records: (records, where) => {
        for (const r of records) this.#event(r, where);
        this.dirty();
      },
      // A gateway that keeps no events has a page without them.
      error: () => {},
    }, 3);
  }

  /** @param {FeedRecord} r @param {Where} where @param {number} thinned */
  #record(r, where, thinned) {
    if (this.playhead.mode !== 'live') this.since += 1;
    const t = this.model.take(r, where.name);
    if (!t) return;
    this.chartGrid.take(r);
    for (const l of this.listeners) l(r, where);
    if (thinned > 0) this.dirty();
  }

  /** @param {FeedRecord} r @param {Where} where */
  #event(r, where) {
    const kind = r.topic.split('/')[2] ?? '';
    let data;
    try { data = JSON.parse(r.text ?? '{}'); } catch { data = {}; }
    this.events.push({ time: r.time, kind, client: String(data.client ?? ''), data, name: where.name, offset: r.offset });
    if (this.events.length > EVENTS_MAX) this.events.shift();
  }

  /** Topics that make a good first picture: some with one field, some with states, one with another field. */
  #defaultCharts() {
    if (this.chosen) return;
    this.chartShape = this.model.shape;
    /** @type {Map<string, { topic: string, field: string }[]>} */
    const groups = new Map();
    /** @type {{ topic: string, field: string }[]} */
    const states = [];
    for (const [name, t] of this.model.topics) {
      if (!t.live || t.field === undefined) continue;
      const leaf = fields(t.live).get(t.field);
      const one = { topic: name, field: t.field };
      if (leaf?.number !== undefined) {
        const key = `${t.field} ${name.split('/').length}`;
        const group = groups.get(key);
        if (group) { if (group.length < 400) group.push(one); } else groups.set(key, [one]);
      } else if (leaf?.state !== undefined && t.live.bytes <= 16 && states.length < 400) states.push(one);
      if (groups.size > 40) break;
    }
    const order = (/** @type {{ topic: string }} */ a, /** @type {{ topic: string }} */ b) => byName(a.topic, b.topic);
    const [first, second] = [...groups.values()].sort((a, b) => b.length - a.length);
    const charts = [...(first ?? []).sort(order).slice(0, 3), ...states.sort(order).slice(0, 3), ...(second ?? []).sort(order).slice(0, 1)];
    // What is drawn stays: only more is added.
    if (this.charts.length === 0 || charts.length > this.charts.length) this.charts = charts;
  }

  // The playhead.

  now() { return this.feed.now(); }

  /** @returns {[number, number]} oldest and newest moment of the log */
  wholeLog() {
    const oldest = this.streams.filter((s) => s.stream !== 'system' && s.end > s.start).map((s) => s.oldest_ms ?? this.now());
    const now = this.now();
    return [Math.min(now, ...oldest), now];
  }

  /** @returns {[number, number]} what the strip and the charts show */
  window() {
    if (this.pinned) return this.pinned;
    const to = this.away ? this.lastSeen + (this.now() - this.lastSeen) : this.now();
    const [oldest] = this.wholeLog();
    return [this.range === 0 ? Math.min(oldest, to - 60_000) : to - this.range, to];
  }

  /** Records that came after the moment of the playhead, as far as their offsets are known. */
  sinceThen() {
    let n = 0;
    for (const s of this.streams.filter((one) => one.stream !== 'system')) {
      const then = this.playhead.offsets.get(`${s.stream}/${s.partition}`);
      if (then !== undefined) n += Math.max(0, s.end - then - 1);
    }
    return Math.max(n, this.since);
  }

  isEmpty() {
    return this.loaded && this.model.topics.size === 0 && this.streams.every((s) => s.stream === 'system' || s.end === s.start);
  }

  /** The position that is shown. */
  where() {
    const all = this.playhead.mode === 'live' ? Object.entries(this.figures?.positions ?? {}) : [...this.playhead.offsets];
    const [name, offset] = all.find(([n]) => !n.startsWith('system/')) ?? [];
    return name === undefined || offset === undefined ? undefined : { name, offset: Number(offset) };
  }

  /** Nothing moves under who looks at the past. */
  pinWindow() {
    if (!this.pinned) this.pinned = this.window();
  }

  /** @param {number} time */
  seekFrom(time) {
    this.pinWindow();
    this.seek(time);
  }

  /** @param {number} time */
  seek(time) {
    this.pinWindow();
    if (this.playhead.mode === 'live') this.since = 0;
    const [oldest, newest] = this.wholeLog();
    this.playhead.time = Math.min(newest, Math.max(oldest, time));
    this.playhead.mode = 'past';
    this.#stopReplay();
    this.#keepInWindow();
    this.#askThen();
    this.#writeAddress();
    this.dirty();
  }

  #keepInWindow() {
    const [from, to] = this.window();
    if (this.playhead.time >= from && this.playhead.time <= to) return;
    const half = (to - from) / 2;
    const end = Math.min(this.now(), this.playhead.time + half);
    this.pinned = [end - 2 * half, end];
  }

  /** @param {number} ms */
  move(ms) {
    if (this.playhead.mode === 'live') return ms < 0 ? this.seek(this.now() + ms) : undefined;
    if (this.playhead.time + ms >= this.now()) return this.goLive();
    this.seek(this.playhead.time + ms);
  }

  goLive() {
    if (this.playhead.mode === 'live') return;
    this.#stopReplay();
    this.playhead.mode = 'live';
    this.playhead.offsets = new Map();
    this.pinned = undefined;
    this.since = 0;
    for (const t of this.model.topics.values()) t.then = undefined;
    this.#writeAddress();
    this.topicView.moved();
    this.dirty();
  }

  /** The newest of each topic at the playhead. One question at a time; the last one counts. */
  #askThen() {
    if (this.asking) return;
    this.asking = true;
    const time = this.playhead.time;
    /** @type {Map<string, import('./model.js').Rec>} */
    const then = new Map();
    /** @type {Map<string, number>} */
    const offsets = new Map();
    const done = () => {
      this.asking = false;
      if (this.playhead.mode !== 'live') {
        for (const name of then.keys()) this.model.topic(name);
        for (const t of this.model.topics.values()) t.then = then.get(t.name);
        this.playhead.offsets = offsets;
        this.topicView.moved();
        this.dirty();
      }
      // It was moved on meanwhile.
      if (this.playhead.mode === 'past' && this.playhead.time !== time) this.#askThen();
    };
    this.feed.subscribe({ filter: '#', at: `time:${new Date(time).toISOString()}` }, {
      start: (where) => { offsets.set(where.name, where.position); },
      snapshot: (records, where) => {
        for (const r of records) {
          const known = then.get(r.topic);
          if (!known || known.time <= r.time) then.set(r.topic, { ...r, name: where.name });
        }
      },
      end: done,
      error: done,
    });
  }

  pauseOrPlay() {
    if (this.playhead.mode === 'live') return this.seek(this.now());
    if (this.playhead.mode === 'past') return this.replay();
    this.#stopReplay();
    this.playhead.mode = 'past';
    this.topicView.moved();
    this.#writeAddress();
    this.dirty();
  }

  /** @param {number} speed */
  setSpeed(speed) {
    this.playhead.speed = speed;
    if (this.playhead.mode === 'replay') this.replay();
    this.dirty();
  }

  /** Plays the log from the playhead on, a window of ten seconds' playing at a time. */
  replay() {
    this.#stopReplay();
    this.playhead.mode = 'replay';
    const { speed } = this.playhead;
    /** @type {{ stopped: boolean, began: number, from: number, upto: number, loading: boolean, queue: import('./model.js').Rec[], at: number }} */
    const run = { stopped: false, began: performance.now(), from: this.playhead.time, upto: this.playhead.time, loading: false, queue: [], at: 0 };
    const load = () => {
      if (run.loading || run.stopped || run.upto - this.playhead.time > 5000 * speed || run.upto >= this.now()) return;
      run.loading = true;
      const to = Math.min(this.now(), run.upto + 10_000 * speed);
      /** @type {import('./model.js').Rec[]} */
      const got = [];
      const done = () => {
        run.loading = false;
        run.upto = to;
        run.queue = [...run.queue.slice(run.at), ...got.sort((a, b) => a.time - b.time)];
        run.at = 0;
      };
      this.feed.subscribe({ filter: '#', from: `time:${new Date(run.upto).toISOString()}`, until: `time:${new Date(to).toISOString()}` }, {
        records: (records, where) => { for (const r of records) if (got.length < 100_000) got.push({ ...r, name: where.name }); },
        end: done,
        error: done,
      });
    };
    const step = () => {
      if (run.stopped) return;
      load();
      const time = run.from + (performance.now() - run.began) * speed;
      // It waits for what is not read yet.
      if (time > run.upto) { run.began += performance.now() - run.began - (run.upto - run.from) / speed; }
      this.playhead.time = Math.min(time, run.upto, this.now());
      while (run.at < run.queue.length && (run.queue[run.at]?.time ?? Infinity) <= this.playhead.time) {
        const r = /** @type {import('./model.js').Rec} */ (run.queue[run.at++]);
        const t = this.model.topic(r.topic);
        if (t && (!t.then || t.then.offset < r.offset || t.then.name !== r.name)) t.then = r;
        this.playhead.offsets.set(r.name, Math.max(this.playhead.offsets.get(r.name) ?? 0, r.offset + 1));
        this.topicView.replayed(r);
      }
      this.#keepInWindow();
      this.#soon();
      if (this.playhead.time >= this.now() - 300) this.goLive();
    };
    const timer = setInterval(step, 50);
    this.stopReplay = () => { run.stopped = true; clearInterval(timer); };
    this.#writeAddress();
  }

  #stopReplay() {
    this.stopReplay?.();
    this.stopReplay = undefined;
  }

  /** Previous or next record of the topic that is open, else of the log. @param {1 | -1} way */
  stepRecord(way) {
    const filter = this.view === 'topic' && this.topic ? this.filter() : '#';
    const time = this.playhead.mode === 'live' ? this.now() : this.playhead.time;
    /** @type {FeedRecord[]} */
    const found = [];
    const iso = (/** @type {number} */ ms) => `time:${new Date(ms).toISOString()}`;
    const take = {
      records: (/** @type {FeedRecord[]} */ records) => { found.push(...records); },
      end: () => {
        const all = found.sort((a, b) => a.time - b.time);
        // A moment shows what was written before it.
        const r = way < 0 ? all.findLast((one) => one.time < time - 1) : all.find((one) => one.time >= time);
        if (r) this.seekFrom(r.time + 1);
        else if (way > 0) this.goLive();
      },
    };
    if (way < 0) this.feed.subscribe({ filter, from: 'last:2', until: iso(time) }, take);
    else if (this.playhead.mode !== 'live') {
      const next = this.feed.subscribe({ filter, from: iso(time), rate_max: 1 }, {
        records: (records) => { next.close(); found.push(...records); take.end(); },
      });
      // Nothing came after it.
      setTimeout(() => { if (found.length === 0) { next.close(); take.end(); } }, 3000);
    }
  }

  /** The filter of what is open: a topic, or a branch and all below it. */
  filter() {
    const branch = this.model.branch(this.topic);
    return branch && branch.children.size > 0 ? `${this.topic}/#` : this.topic;
  }

  // The window.

  /** @param {number} ms */
  setRange(ms) {
    this.range = ms;
    this.rangeSaid = true;
    if (this.pinned) {
      const [oldest, now] = this.wholeLog();
      const length = ms || now - oldest;
      const end = Math.min(now, Math.max(this.playhead.time + length / 2, oldest + length));
      this.pinned = [end - length, end];
    }
    this.#writeAddress();
    this.dirty();
  }

  /** @param {number} way */
  zoom(way) {
    const at = RANGES.findIndex(([, ms]) => ms === this.range);
    const next = RANGES[Math.min(RANGES.length - 1, Math.max(0, at + way))];
    if (next) this.setRange(next[1]);
  }

  // Views.

  /** @param {View} view */
  show(view) {
    this.view = view;
    this.polls = 0;
    this.#writeAddress();
    this.#poll();
    this.dirty();
  }

  treeIsShown() { return this.view === 'live' || this.view === 'topic'; }

  /** @param {string} path */
  openTopic(path) {
    if (path === '' && !this.model.topics.has('')) return;
    this.topic = path;
    this.view = 'topic';
    this.#writeAddress();
    this.topicView.opened();
    this.dirty();
  }

  /** @param {string} topic @param {string} field */
  toggleChart(topic, field) {
    const at = this.charts.findIndex((c) => c.topic === topic && c.field === field);
    if (at >= 0) this.charts = this.charts.filter((_, i) => i !== at);
    else this.charts = [...(this.chosen ? this.charts : []), { topic, field }].slice(-CHARTS_MAX);
    this.chosen = true;
    this.#writeAddress();
    this.dirty();
  }

  #writeAddress() {
    const p = new URLSearchParams();
    p.set('view', this.view);
    if (this.view === 'topic') p.set('topic', this.topic);
    if (this.view === 'clients' && this.clientsView.chosen) p.set('client', this.clientsView.chosen);
    if (this.rangeSaid) p.set('range', RANGES.find(([, ms]) => ms === this.range)?.[0] ?? '15m');
    if (this.playhead.mode !== 'live') p.set('at', new Date(this.playhead.time).toISOString());
    if (this.chosen) for (const c of this.charts) p.append('chart', `${c.field} ${c.topic}`);
    const hash = `#${p}`;
    if (location.hash !== hash) history.replaceState(null, '', hash);
  }

  address() { this.#writeAddress(); }

  #readAddress() {
    const p = new URLSearchParams(location.hash.slice(1));
    const view = p.get('view');
    if (view && ['live', 'topic', 'clients', 'log', 'refusals'].includes(view)) this.view = /** @type {View} */ (view);
    const range = RANGES.find(([name]) => name === p.get('range'));
    if (range) { this.range = range[1]; this.rangeSaid = true; }
    const chosen = p.getAll('chart').map((c) => { const at = c.indexOf(' '); return { field: c.slice(0, at), topic: c.slice(at + 1) }; });
    if (chosen.length > 0) { this.charts = chosen.slice(0, CHARTS_MAX); this.chosen = true; }
    const topic = p.get('topic');
    if (topic !== null && this.view === 'topic') { this.topic = topic; this.topicView.opened(); }
    const client = p.get('client');
    if (client !== null) this.clientsView.chosen = client;
    const at = Date.parse(p.get('at') ?? '');
    this.wanted = Number.isFinite(at) ? at : undefined;
    if (this.wanted !== undefined) this.#seekWanted();
    else if (this.playhead.mode !== 'live') this.goLive();
    this.dirty();
  }

  /** Goes to the moment of the address, as soon as the log and the gateway's clock are known: no moment lies in a log that nobody has seen. */
  #seekWanted() {
    if (this.wanted === undefined || this.streams.length === 0 || !this.figures) return;
    const at = this.wanted;
    this.wanted = undefined;
    this.seekFrom(at);
  }

  nextTheme() {
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    const now = document.documentElement.dataset.theme || (dark ? 'dark' : 'light');
    const next = now === 'dark' ? 'light' : 'dark';
    localStorage.setItem('theme', next);
    this.#theme(next);
  }

  /** @param {string} name */
  #theme(name) {
    if (name) document.documentElement.dataset.theme = name;
    matchMedia('(prefers-color-scheme: dark)').onchange = () => { themeChanged(); this.theme += '.'; this.dirty(); };
    themeChanged();
    this.theme = `${name}${this.theme.length}`;
    this.dirty();
  }

  // What is asked now and then.

  /** @param {string} path @returns {Promise<any>} `undefined`: no answer */
  async get(path) {
    try {
      const answer = await fetch(`/api/v1/${path}`);
      return answer.ok && answer.status !== 204 ? await answer.json() : undefined;
    } catch {
      return undefined;
    }
  }

  /** Something was changed: it is looked at once. */
  pollNow() {
    this.polls = 0;
    this.#poll();
  }

  /**
   * One record with all of its payload; `undefined`: it is not there any more.
   * @param {string} name STREAM/PARTITION
   * @param {number} offset
   */
  record(name, offset) {
    const at = name.lastIndexOf('/');
    return this.get(`records/${encodeURIComponent(name.slice(0, at))}/${name.slice(at + 1)}/${offset}`);
  }

  async #poll() {
    if (document.hidden || this.away || this.polling) return;
    // What nobody looks at is asked seldom: there may be ten thousand pages.
    const close = this.view === 'clients' || this.view === 'log' || this.view === 'topic' || this.isEmpty();
    const seldom = this.readersBehind().length > 0 ? 5_000 : 10_000;
    if (!close && this.polls >= 3 && performance.now() - this.polled < seldom) return;
    this.polling = true;
    this.polled = performance.now();
    this.polls += 1;
    try {
      this.about ??= await this.get('gateway');
      this.streams = (await this.get('streams'))?.streams ?? this.streams;
      this.#seekWanted();
      // A young log fills the strip.
      const [oldest, now] = this.wholeLog();
      if (!this.rangeSaid && this.range === 300_000 && now - oldest > 300_000) this.range = 900_000;
      await this.#pollSessions();
      const clients = (await this.get('clients'))?.clients;
      if (clients) {
        this.clients = new Map(clients.map((/** @type {any} */ c) => [c.client_id, c]));
        for (const c of clients) this.origins.set(c.origin, c.client_id);
      }
      if (this.view === 'clients') this.groups = (await this.get('groups'))?.groups ?? this.groups;
      if (this.view === 'log') await this.logView.poll();
    } finally {
      this.polling = false;
    }
    this.dirty();
  }

  async #pollSessions() {
    /** @type {Session[]} */
    const all = [];
    let after = '';
    do {
      const part = await this.get(`sessions?limit=1000&after=${encodeURIComponent(after)}`);
      if (!part) return;
      all.push(...part.sessions);
      after = part.after ?? '';
    } while (after !== '' && all.length < SESSIONS_MAX);
    this.sessions = all;
  }

  /** Retention has passed what is shown: it is said, once. */
  #retained() {
    const [oldest] = this.wholeLog();
    const gone = this.playhead.mode !== 'live' && this.streams.length > 0 && this.playhead.time < oldest - 1000;
    if (gone && !this.gone) this.banner.say('bad', 'This moment is not in the log any more', `Retention took it. The oldest record that is kept is of ${new Date(oldest).toLocaleTimeString('en-GB')}; Home goes there.`);
    this.gone = gone;
  }

  /** Sessions that are behind, the furthest first. */
  readersBehind() {
    return this.sessions.flatMap((s) => {
      const behind = s.places.filter((p) => p.stream !== 'system').map((p) => p.behind_ms ?? 0);
      const most = Math.max(0, ...behind);
      return most > 2000 ? [{ client_id: s.client_id, connected: s.connected, behind_ms: most }] : [];
    }).sort((a, b) => b.behind_ms - a.behind_ms);
  }

  // Drawing: ten times a second what is text, twice what is a chart, nothing while hidden.

  /** Something was done: it is drawn at once. */
  dirty() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.#draw(true);
    });
  }

  #fast() { if (!document.hidden) this.#draw(false); }

  /** What came is on the screen with the next frame, if the last one was not just now. */
  #soon() {
    if (this.soon || document.hidden || !this.treeIsShown()) return;
    this.soon = true;
    setTimeout(() => requestAnimationFrame(() => {
      this.soon = false;
      this.treeDrawn = performance.now();
      this.tree.update();
    }), Math.max(0, 100 - (performance.now() - this.treeDrawn)));
  }

  #slow() {
    if (document.hidden) return;
    this.model.rates();
    if (this.charts.length < 7 && this.chartShape !== this.model.shape) this.#defaultCharts();
    this.strip.load();
    this.#draw(true);
  }

  /** @param {boolean} all */
  #draw(all) {
    if (!this.strip) return;
    const { view } = this;
    const empty = this.isEmpty();
    document.body.dataset.view = view;
    document.body.dataset.state = !this.loaded ? 'loading' : empty ? 'empty' : this.away ? 'away' : 'ready';
    for (const b of document.querySelectorAll('nav [data-view]')) attr(b, 'aria-current', b.getAttribute('data-view') === (view === 'topic' ? 'live' : view) ? 'page' : null);
    this.strip.text();
    this.figureBar.update();
    this.banner.update();
    if (!all) return;
    this.strip.draw();
    if (this.treeIsShown()) this.tree.update();
    this.#retained();
    const loading = document.getElementById('loading');
    if (loading && !this.loaded && performance.now() - this.openedAt > 300) set(loading, `${this.model.topics.size} topics read`);
    if (view === 'live') { this.first.update(); if (!empty) { this.urgent.update(); this.chartGrid.update(); } }
    if (view === 'topic') this.topicView.update();
    else if (this.topicView.subscription) this.topicView.leave();
    if (view === 'clients') this.clientsView.update();
    if (view === 'log') this.logView.update();
    if (view === 'refusals') this.refusalsView.update();
  }
}

// For who looks from the console.
Object.assign(globalThis, { weir: new App() });
