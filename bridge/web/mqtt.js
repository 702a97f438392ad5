// One MQTT 5 publish over websocket, for who publishes by hand: CONNECT, PUBLISH with QoS 0 to 2, DISCONNECT.

/** @typedef {{ ms: number, position: string | undefined, code: number }} Published */

const text = (/** @type {string} */ s) => { const b = new TextEncoder().encode(s); return [b.length >> 8, b.length & 255, ...b]; };

/** @param {number} n */
function varint(n) {
  const out = [];
  do { out.push((n & 127) | (n > 127 ? 128 : 0)); n >>= 7; } while (n > 0);
  return out;
}

/** @param {number} first @param {number[]} body */
const packet = (first, body) => Uint8Array.from([first, ...varint(body.length), ...body]);

/** User properties of an acknowledgement. @param {Uint8Array} b */
function userProperties(b) {
  /** @type {Map<string, string>} */
  const found = new Map();
  let at = 0;
  const str = () => { const n = ((b[at] ?? 0) << 8) | (b[at + 1] ?? 0); at += 2 + n; return new TextDecoder().decode(b.slice(at - n, at)); };
  while (at < b.length) {
    const id = b[at++];
    if (id === 0x26) found.set(str(), str());
    else if (id === 0x1f) str();
    else break;
  }
  return found;
}

const CODES = /** @type {Record<number, string>} */ ({ 0x87: 'not authorized', 0x90: 'the topic name is not valid', 0x97: 'quota exceeded', 0x99: 'the payload is not of its format', 0x10: 'nobody subscribes to it' });

/**
 * @param {string} url @param {{ topic: string, payload: string, qos: 0 | 1 | 2, retain: boolean }} m
 * @returns {Promise<Published>}
 */
export function publish(url, m) {
  return new Promise((done, fail) => {
    const socket = new WebSocket(url, 'mqtt');
    socket.binaryType = 'arraybuffer';
    const timer = setTimeout(() => end('no answer within 10 s'), 10_000);
    let sent = 0;
    let got = new Uint8Array();
    /** @type {Published} */
    const result = { ms: 0, position: undefined, code: 0 };
    const end = (/** @type {string | null} */ error) => {
      clearTimeout(timer);
      socket.onclose = null;
      if (socket.readyState === WebSocket.OPEN) { socket.send(Uint8Array.of(0xe0, 0)); socket.close(); }
      if (error === null) done(result);
      else fail(new Error(error));
    };
    socket.onopen = () => {
      // The offset of what is acknowledged is wanted.
      const properties = [0x26, ...text('position'), ...text('true')];
      socket.send(packet(0x10, [...text('MQTT'), 5, 2, 0, 30, ...varint(properties.length), ...properties, ...text(`page-${Math.random().toString(36).slice(2, 10)}`)]));
    };
    socket.onclose = () => end('the gateway closed the connection; it may not admit this page');
    socket.onerror = () => {};
    const acknowledged = (/** @type {Uint8Array} */ body) => {
      result.ms = performance.now() - sent;
      result.code = body[2] ?? 0;
      const length = body[3] ?? 0;
      const p = userProperties(body.slice(4, 4 + length));
      if (p.has('offset')) result.position = `${p.get('stream')}/${p.get('partition')} · ${p.get('offset')}`;
      if (result.code >= 0x80) end(CODES[result.code] ?? `refused with code 0x${result.code.toString(16)}`);
      else end(null);
    };
    socket.onmessage = (e) => {
      got = Uint8Array.from([...got, ...new Uint8Array(e.data)]);
      for (;;) {
        let [at, length, shift] = [1, 0, 0];
        for (;;) { const b = got[at++]; if (b === undefined) return; length |= (b & 127) << shift; if (b < 128) break; shift += 7; }
        if (got.length < at + length) return;
        const [kind, body] = [(got[0] ?? 0) >> 4, got.slice(at, at + length)];
        got = got.slice(at + length);
        if (kind === 2) {
          if ((body[1] ?? 1) !== 0) return end(`refused with code 0x${(body[1] ?? 0).toString(16)}`);
          const payload = new TextEncoder().encode(m.payload);
          sent = performance.now();
          socket.send(packet(0x30 | (m.qos << 1) | (m.retain ? 1 : 0), [...text(m.topic), ...(m.qos > 0 ? [0, 1] : []), 0, ...payload]));
          if (m.qos === 0) return end(null);
        } else if (kind === 5 && (body[2] ?? 0) >= 0x80) return acknowledged(body);
        else if (kind === 5) socket.send(Uint8Array.of(0x62, 2, 0, 1));
        else if (kind === 4 || kind === 7) return acknowledged(body);
        else if (kind === 14) return end(CODES[body[0] ?? 0] ?? `closed with code 0x${(body[0] ?? 0).toString(16)}`);
      }
    };
  });
}
