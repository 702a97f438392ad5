// What the page's tests share: a gateway as a process, a browser, and questions to both.

import { chromium } from 'playwright-core';
import { spawn, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import assert from 'node:assert/strict';

export { assert };
export const binary = process.env.WEIR ?? 'target/debug/weir';
export const shots = process.env.SHOTS ?? 'target/page';
const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';

const freePort = () => new Promise((done) => {
  const s = createServer().listen(0, '127.0.0.1', () => { const { port } = s.address(); s.close(() => done(port)); });
});

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Waits until `done` gives something true; gives it. */
export async function until(what, done, limit = 45_000) {
  const end = Date.now() + limit;
  for (;;) {
    const got = await done();
    if (got) return got;
    if (Date.now() > end) throw new Error(`not within ${limit} ms: ${what}`);
    await sleep(50);
  }
}

export class Weir {
  static async start(command = 'run', more = []) {
    const w = new Weir();
    w.dir = mkdtempSync(join(tmpdir(), 'weir-page-'));
    [w.mqtt, w.http, w.admin] = await Promise.all([freePort(), freePort(), freePort()]);
    w.args = [command, '--mqtt', `127.0.0.1:${w.mqtt}`, '--http', `127.0.0.1:${w.http}`, '--admin', `127.0.0.1:${w.admin}`, ...(command === 'run' ? ['--data', join(w.dir, 'data')] : []), ...more];
    await w.again();
    return w;
  }

  /** The same log, for a while, where the page does not look. */
  async aside(work) {
    const { args, mqtt } = this;
    const ports = await Promise.all([freePort(), freePort(), freePort()]);
    this.mqtt = ports[0];
    this.args = args.map((a, i) => { const at = ['--mqtt', '--http', '--admin'].indexOf(args[i - 1]); return at < 0 ? a : `127.0.0.1:${ports[at]}`; });
    await this.again();
    await work(this);
    await this.kill();
    [this.args, this.mqtt] = [args, mqtt];
  }

  async again() {
    this.process = spawn(binary, this.args, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, RUST_LOG: 'warn', TMPDIR: this.dir } });
    this.ended = new Promise((done) => this.process.on('exit', done));
    await new Promise((done, fail) => {
      this.process.stdout.on('data', (d) => { if (String(d).includes('weir ready')) done(); });
      this.process.on('exit', (code) => fail(new Error(`weir ended with ${code}`)));
    });
  }

  async kill() {
    this.process.removeAllListeners('exit');
    const gone = new Promise((done) => this.process.on('exit', done));
    this.process.kill('SIGKILL');
    await gone;
  }

  async stop() {
    this.process.removeAllListeners('exit');
    const gone = new Promise((done) => this.process.on('exit', done));
    this.process.kill('SIGTERM');
    await Promise.race([gone, sleep(10_000)]);
    this.process.kill('SIGKILL');
    rmSync(this.dir, { recursive: true, force: true });
  }

  get url() { return `http://127.0.0.1:${this.http}/`; }

  async api(path) {
    const answer = await fetch(`${this.url}api/v1/${path}`);
    assert.equal(answer.status, 200, path);
    return answer.json();
  }

  /** One message, acknowledged when this returns. */
  publish(topic, payload, ...more) {
    execFileSync(binary, ['pub', '-p', String(this.mqtt), '-q', '1', '-t', topic, ...(Buffer.isBuffer(payload) ? ['-s'] : ['-m', payload]), ...more], { input: Buffer.isBuffer(payload) ? payload : undefined });
  }

  /** A message per line. */
  lines(topic, lines) {
    execFileSync(binary, ['pub', '-p', String(this.mqtt), '-q', '1', '-t', topic, '-l'], { input: `${lines.join('\n')}\n` });
  }
}

/** Publishes over one connection: `each(n)` gives topic and payload of the nth; `rate` a second, until it is ended. */
export function load(port, rate, each, qos = 0) {
  const text = (s) => { const b = Buffer.from(s); return Buffer.concat([Buffer.from([b.length >> 8, b.length & 255]), b]); };
  const packet = (first, body) => { const len = []; let n = body.length; do { len.push((n & 127) | (n > 127 ? 128 : 0)); n >>= 7; } while (n > 0); return Buffer.concat([Buffer.from([first, ...len]), body]); };
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  socket.write(packet(0x10, Buffer.concat([text('MQTT'), Buffer.from([4, 2, 0, 0]), text('load')])));
  const [start, sent] = [performance.now(), { n: 0 }];
  const timer = setInterval(() => {
    const due = Math.floor(((performance.now() - start) / 1000) * rate);
    const batch = [];
    while (sent.n < due) { const [topic, payload] = each(sent.n++); batch.push(packet(0x30 | (qos << 1), Buffer.concat([text(topic), qos > 0 ? Buffer.from([(sent.n >> 8) & 255, (sent.n & 255) || 1]) : Buffer.alloc(0), Buffer.from(payload)]))); }
    if (batch.length > 0) socket.write(Buffer.concat(batch));
  }, 20);
  return { sent, end: () => { clearInterval(timer); socket.destroy(); } };
}

/** A page that fails the test for any error on it. */
export async function open(browser, url, { width = 1280, height = 880, theme = 'light', touch = false, allow = [], before } = {}) {
  const page = await browser.newPage({ viewport: { width, height }, colorScheme: theme, deviceScaleFactor: width < 500 ? 2 : 1, hasTouch: touch });
  page.problems = [];
  page.on('pageerror', (e) => page.problems.push(e.stack ?? String(e)));
  page.on('console', (m) => { if (m.type() === 'error' && !allow.some((a) => m.text().includes(a))) page.problems.push(m.text()); });
  if (before) await before(page);
  await page.goto(url);
  return page;
}

export const launch = () => chromium.launch({
  executablePath: CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--enable-precise-memory-info'],
});

/** Rows of the tree that are in the document: path, value, age. */
export const rows = (page) => page.$$eval('.row:not([hidden])', (all) => all.map((r) => ({ path: r.title, value: r.querySelector('.value').textContent, age: r.querySelector('.age').textContent })));

/** Remembers the text that canvases draw, with its colour and what was drawn below it before. */
export const watchCanvases = (page) => page.addInitScript(() => {
  globalThis.drawnText = new Map();
  const draw = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function fillText(text, x, y, ...more) {
    const { width } = this.measureText(text);
    const left = x - (this.textAlign === 'right' || this.textAlign === 'end' ? width : this.textAlign === 'center' ? width / 2 : 0);
    const up = { top: 6, middle: 0, bottom: -6 }[this.textBaseline] ?? -4;
    const below = [0.1, 0.5, 0.9].map((part) => {
      const at = this.getTransform().transformPoint({ x: left + width * part, y: y + up });
      return [...this.getImageData(Math.max(0, Math.round(at.x)), Math.max(0, Math.round(at.y)), 1, 1).data];
    });
    if (!globalThis.drawnText.has(this.canvas)) globalThis.drawnText.set(this.canvas, new Map());
    globalThis.drawnText.get(this.canvas).set(String(text), { style: this.fillStyle, alpha: this.globalAlpha, below });
    return draw.call(this, text, x, y, ...more);
  };
});

/** Text whose contrast with what is behind it is too small (WCAG 2.2, 1.4.3): of the document, and of its canvases if they are watched. */
export const faint = (page) => page.evaluate(() => {
  const parse = (c) => { const m = c.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0]; return c.startsWith('color(srgb') ? [m[0] * 255, m[1] * 255, m[2] * 255, m[3] ?? 1] : [m[0], m[1], m[2], m[3] ?? 1]; };
  const lum = ([r, g, b]) => { const f = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const ground = (el) => { const layers = []; for (let e = el; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor)); return layers.reverse().reduce((b, l) => over(l, b), [255, 255, 255]); };
  const ratio = (one, other) => { const [a, b] = [lum(one), lum(other)]; return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
  const found = [];
  for (const [canvas, texts] of globalThis.drawnText ?? []) {
    if (!canvas.isConnected || canvas.clientWidth === 0) continue;
    for (const [text, { style, alpha, below }] of texts) {
      const hex = style.match(/^#(..)(..)(..)$/);
      const colour = hex ? [...hex.slice(1).map((v) => parseInt(v, 16)), alpha] : parse(style);
      const worst = Math.min(...below.map(([r, g, b, a]) => { const back = over([r, g, b, a / 255], ground(canvas)); return ratio(over(colour, back), back); }));
      if (worst < 4.5) found.push(`${worst.toFixed(2)} canvas ${canvas.className} "${text}" ${style} on ${JSON.stringify(below)}`);
    }
  }
  for (const el of document.querySelectorAll('body *')) {
    const text = [...el.childNodes].filter((n) => n.nodeType === 3 && n.textContent.trim() !== '').map((n) => n.textContent.trim()).join(' ');
    const box = el.getBoundingClientRect();
    if (text === '' || box.width === 0 || box.height === 0 || !el.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || el.closest('[disabled], .unseen')) continue;
    const style = getComputedStyle(el);
    const contrast = ratio(over(parse(style.color), ground(el)), ground(el));
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push(`${contrast.toFixed(2)} ${el.className} "${text.slice(0, 30)}" ${style.color}`);
  }
  return found;
});
