// The page: newest value per topic, live. Everything from a device goes into the document as text, never as markup.
const ROWS_MAX = 2000; // more than anybody reads; what is left out is said
const rows = new Map(); // topic -> { row, cells, offset }
const waiting = new Map(); // topic -> newest record not drawn yet
const said = document.getElementById('said');
const body = document.getElementById('rows');
const input = document.getElementById('filter');
const empty = document.getElementById('empty');
let socket;
let retry = 500;
let hidden = 0;
let state = 'connecting…';

function connect() {
  socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`);
  socket.onopen = () => { retry = 500; ask(); };
  socket.onmessage = (e) => take(JSON.parse(e.data));
  socket.onclose = () => {
    state = `connection lost, trying again in ${Math.round(retry / 100) / 10} s`;
    draw();
    setTimeout(connect, retry);
    retry = Math.min(retry * 2, 10000);
  };
}

function ask() {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: 'subscribe', id: 1, filter: input.value, latest_only: true }));
}

function take(told) {
  if (told.type === 'error') {
    state = told.message;
  } else if (told.records) {
    if (told.type === 'snapshot') {
      state = `live from ${told.stream}/${told.partition} at ${told.position}`;
      input.removeAttribute('aria-invalid');
    }
    for (const r of told.records) waiting.set(r.topic, r);
  }
  schedule();
}

let scheduled = false;
function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => { scheduled = false; draw(); });
}

function add(topic) {
  if (rows.size >= ROWS_MAX) { hidden += 1; return undefined; }
  const row = document.createElement('tr');
  const cells = Array.from({ length: 4 }, () => row.appendChild(document.createElement('td')));
  cells[0].textContent = topic;
  cells[0].title = topic;
  cells[3].className = 'n';
  // Sorted by topic.
  let before = null;
  for (const other of body.children) {
    if (other.firstChild.textContent > topic) { before = other; break; }
  }
  body.insertBefore(row, before);
  const entry = { row, cells, offset: -1 };
  rows.set(topic, entry);
  return entry;
}

function draw() {
  for (const [topic, r] of waiting) {
    const entry = rows.get(topic) ?? add(topic);
    if (!entry || r.offset < entry.offset) continue;
    entry.offset = r.offset;
    entry.cells[1].textContent = r.text ?? `${r.bytes} bytes, not text`;
    entry.cells[1].title = entry.cells[1].textContent;
    entry.cells[2].textContent = new Date(r.time).toLocaleTimeString();
    entry.cells[3].textContent = r.offset;
    entry.row.classList.add('new');
    clearTimeout(entry.fade);
    entry.fade = setTimeout(() => entry.row.classList.remove('new'), 600);
  }
  waiting.clear();
  empty.hidden = rows.size > 0;
  const more = hidden > 0 ? `, the first ${ROWS_MAX} shown` : '';
  said.textContent = `${state} · ${rows.size} topics${more}`;
}

document.getElementById('ask').addEventListener('submit', (e) => {
  e.preventDefault();
  rows.clear();
  waiting.clear();
  hidden = 0;
  body.replaceChildren();
  ask();
});

connect();
