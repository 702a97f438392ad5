// The client of Weir's dashboard feed: one websocket, many subscriptions, nothing missed when it breaks. No dependencies; docs/feed.md has the protocol.
//
//   const feed = new Feed('ws://127.0.0.1:8080/ws');
//   const live = feed.subscribe({ filter: 'site/#' }, { records: (records, where) => console.log(where.name, records) });
//   live.close();

/** @typedef {{ topic: string, offset: number, time: number, qos: number, retain: boolean, bytes: number, text?: string, base64?: string, origin?: string }} FeedRecord */
/** @typedef {{ from: number, to: number, reason: string }} Lost */
/** @typedef {{ filter: string, snapshot?: boolean, from?: string, at?: string, until?: string, step?: string, field?: string, latest_only?: boolean, rate_max?: number, trace?: boolean }} Wish */
/** @typedef {{ name: string, stream: string, partition: number, position: number, epoch: string }} Where `name` is `stream/partition`. */
/** @typedef {{ topic: string, field: string, points: number[][], states: [number, string][] }} Series */
/** @typedef {{ step: number, complete: boolean, read_to: number | null, left_out: boolean, series: Series[] }} Steps */
/**
 * What a subscription is told. After a lost connection `start` comes again, with `recovered`.
 * @typedef {object} Handlers
 * @property {(where: Where, more: { end: number, recovered?: boolean, lost?: Lost }) => void} [start]
 * @property {(records: FeedRecord[], where: Where, done: boolean) => void} [snapshot]
 * @property {(records: FeedRecord[], where: Where, thinned: number) => void} [records]
 * @property {(lost: Lost, where: Where) => void} [lost]
 * @property {(steps: Steps, where: Where) => void} [steps]
 * @property {() => void} [end] All that was asked for was told.
 * @property {(message: string) => void} [error] It has ended.
 */
/** @typedef {{ state: 'connecting' | 'open' | 'away', since: number, tries: number, next: number }} Connection `next`: when it is tried again, ms since 1970. */

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 10_000;
/** The gateway says something every 10 s; who hears nothing for so long has lost it. */
const SILENCE_MS = 25_000;

/** @param {any} n */
const isCount = (n) => Number.isFinite(n) && n >= 0;

/** @param {any} r */
const isRecord = (r) => r && typeof r.topic === 'string' && isCount(r.offset) && isCount(r.time) && isCount(r.bytes) && (typeof r.text === 'string' || typeof r.base64 === 'string');

/** @param {any} s */
const isSeries = (s) => s && typeof s.topic === 'string' && typeof s.field === 'string' && Array.isArray(s.points) && s.points.every(Array.isArray) && Array.isArray(s.states) && s.states.every(Array.isArray);

/** @param {any} l */
const isLost = (l) => l && isCount(l.from) && isCount(l.to) && typeof l.reason === 'string';

/**
 * Is it a message of the feed, with everything that is read of it? Kinds that are not known are left out, for a newer gateway may have more.
 * @param {any} m
 */
function isSound(m) {
  if (typeof m !== 'object' || m === null || typeof m.type !== 'string') return false;
  const where = () => typeof m.stream === 'string' && isCount(m.partition);
  switch (m.type) {
    case 'beat': return isCount(m.time);
    case 'figures': return ['time', 'boot', 'received', 'delivered', 'sent', 'pending', 'connections', 'sessions', 'behind', 'lost', 'dropped', 'refused'].every((k) => isCount(m[k])) && typeof m.positions === 'object' && m.positions !== null;
    case 'start': return where() && isCount(m.position) && isCount(m.end) && typeof m.epoch === 'string' && (m.lost === undefined || isLost(m.lost));
    case 'snapshot': case 'records': return where() && isCount(m.position) && Array.isArray(m.records) && m.records.every(isRecord);
    case 'position': return where() && isCount(m.position);
    case 'lost': return where() && isLost(m.lost);
    case 'steps': return where() && Array.isArray(m.series) && m.series.every(isSeries);
    case 'error': return typeof m.message === 'string';
    default: return true;
  }
}

export class Feed {
  /** @type {Map<number, { id: number, wish: Wish | null, handlers: Handlers, figures: ((f: any) => void) | null, reached: Map<string, Where>, complete: boolean }>} */
  #subscriptions = new Map();
  /** @type {WebSocket | undefined} */
  #socket;
  #nextId = 1;
  #heard = 0;
  #closed = false;
  #timer = 0;
  /** @type {Connection} */
  connection = { state: 'connecting', since: Date.now(), tries: 0, next: 0 };
  /** @type {(c: Connection) => void} */
  onconnection = () => {};
  /** The gateway's clock: add this to Date.now(). */
  clockOffset = 0;
  #offsetKnown = false;

  /** @param {string} url */
  constructor(url) {
    this.url = url;
    this.#open();
    setInterval(() => this.#listen(), 1000);
  }

  /**
   * @param {Wish} wish
   * @param {Handlers} handlers
   * @param {number} [id] the same for all browsers that want the same, so that they share what they are told
   * @returns {{ close: () => void }}
   */
  subscribe(wish, handlers, id = 1000 + this.#nextId++) {
    return this.#add({ id, wish, handlers, figures: null, reached: new Map(), complete: false });
  }

  /**
   * The page's first lines, twice a second.
   * @param {(figures: any) => void} take
   */
  figures(take, id = 1) {
    return this.#add({ id, wish: null, handlers: {}, figures: take, reached: new Map(), complete: false });
  }

  /** The gateway's clock, ms since 1970. */
  now() {
    return Date.now() + this.clockOffset;
  }

  /** Tries again at once. */
  retry() {
    if (this.connection.state === 'away') this.#open();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }

  /** @param {{ id: number, wish: Wish | null, handlers: Handlers, figures: ((f: any) => void) | null, reached: Map<string, Where>, complete: boolean }} s */
  #add(s) {
    this.#subscriptions.set(s.id, s);
    if (this.connection.state === 'open') this.#ask(s);
    return {
      close: () => {
        if (this.#subscriptions.get(s.id) !== s) return;
        this.#subscriptions.delete(s.id);
        this.#say({ type: 'unsubscribe', id: s.id });
      },
    };
  }

  /** @param {object} message */
  #say(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** @param {{ id: number, wish: Wish | null, figures: any, reached: Map<string, Where>, complete: boolean }} s */
  #ask(s) {
    if (!s.wish) return this.#say({ type: 'figures', id: s.id });
    const { filter, latest_only, rate_max, trace, from, at, until, step, field, snapshot } = s.wish;
    // What is bounded is asked for anew; what goes on, goes on where it was.
    if (s.complete && !at && !until && !step) {
      const resume = Object.fromEntries([...s.reached].map(([name, w]) => [name, { position: w.position, epoch: w.epoch }]));
      return this.#say({ type: 'subscribe', id: s.id, filter, latest_only, rate_max, trace, resume });
    }
    this.#say({ type: 'subscribe', id: s.id, filter, latest_only, rate_max, trace, from, at, until, step, field, snapshot });
  }

  #open() {
    clearTimeout(this.#timer);
    const socket = new WebSocket(this.url);
    this.#socket = socket;
    this.#heard = Date.now();
    socket.onopen = () => {
      this.#tell({ state: 'open', since: Date.now(), tries: 0, next: 0 });
      for (const s of this.#subscriptions.values()) this.#ask(s);
    };
    socket.onmessage = (e) => {
      this.#heard = Date.now();
      let told;
      // What is no message of the feed comes from something else: it is left, and tried again.
      try { told = JSON.parse(e.data); } catch { return socket.close(); }
      if (!isSound(told)) return socket.close();
      this.#hear(told);
    };
    socket.onclose = () => {
      if (this.#closed || this.#socket !== socket) return;
      const tries = this.connection.tries + 1;
      // Not all pages at once.
      const wait = Math.min(FIRST_RETRY_MS * 2 ** (tries - 1), LAST_RETRY_MS) * (0.75 + Math.random() / 2);
      const since = this.connection.state === 'away' ? this.connection.since : Date.now();
      this.#tell({ state: 'away', since, tries, next: Date.now() + wait });
      this.#timer = window.setTimeout(() => this.#open(), wait);
    };
  }

  #listen() {
    if (this.connection.state === 'open' && Date.now() - this.#heard > SILENCE_MS) this.#socket?.close();
  }

  /** @param {Connection} c */
  #tell(c) {
    this.connection = c;
    this.onconnection(c);
  }

  /** @param {number} time */
  #clock(time) {
    const offset = time - Date.now();
    // What comes late makes the gateway seem slow: the largest is nearest, and an old one is forgotten bit by bit.
    this.clockOffset = this.#offsetKnown ? Math.max(offset, this.clockOffset - 1) : offset;
    if (Math.abs(offset - this.clockOffset) > 60_000) this.clockOffset = offset;
    this.#offsetKnown = true;
  }

  /** @param {any} m */
  #hear(m) {
    if (m.type === 'beat') return this.#clock(m.time);
    if (m.type === 'figures') {
      this.#clock(m.time);
      for (const s of this.#subscriptions.values()) s.figures?.(m);
      return;
    }
    const s = this.#subscriptions.get(m.id);
    if (!s) return;
    const { handlers, reached } = s;
    const name = `${m.stream}/${m.partition}`;
    const known = reached.get(name);
    /** @type {Where} */
    const where = { name, stream: m.stream, partition: m.partition, position: m.position ?? known?.position ?? 0, epoch: m.epoch ?? known?.epoch ?? '' };
    switch (m.type) {
      case 'start':
        // With a snapshot to come nothing is reached yet: broken off here, it begins anew.
        if (!m.snapshot) this.#reached(s, where);
        handlers.start?.(where, { end: m.end, recovered: m.recovered, lost: m.lost });
        break;
      case 'snapshot':
        if (m.done) this.#reached(s, where);
        handlers.snapshot?.(m.records, where, m.done);
        break;
      case 'records':
        this.#reached(s, where);
        handlers.records?.(m.records, where, m.thinned ?? 0);
        break;
      case 'position':
        this.#reached(s, where);
        break;
      case 'lost':
        handlers.lost?.(m.lost, where);
        break;
      case 'steps':
        handlers.steps?.(m, where);
        break;
      case 'end':
        this.#subscriptions.delete(m.id);
        handlers.end?.();
        break;
      case 'error':
        this.#subscriptions.delete(m.id);
        handlers.error?.(m.message);
        break;
    }
  }

  /**
   * @param {{ reached: Map<string, Where>, complete: boolean }} s
   * @param {Where} where
   */
  #reached(s, where) {
    s.reached.set(where.name, where);
    s.complete = true;
  }
}
