// What an operator can do. Each action is confirmed; the admin key stays in this page's memory.

let adminKey = '';
const dialog = $('dialog');
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });

const path = (worker) => `/workers/${worker.worker_id}`;
const query = (worker) => `?workers=${encodeURIComponent(worker.worker_id)}`;
const ACTIONS = [
  { name: 'Quarantine', when: (w) => w.admin !== 'quarantined', call: (w) => ['PUT', path(w), { is_dead: true }], what: 'It gets no requests until you recover it. What it is doing goes on, and it is probed further.' },
  { name: 'Recover', when: (w) => w.admin === 'quarantined' || w.health === 'unhealthy', call: (w) => ['PUT', path(w), { is_dead: false }], what: 'The quarantine ends, its ill health is forgotten, and a probe judges anew.' },
  { name: 'Drain', when: (w) => w.admin === 'enabled', call: (w) => ['PUT', path(w), { draining: true }], what: 'It gets nothing new, and finishes what it has.' },
  { name: 'End the drain', when: (w) => w.admin === 'draining', call: (w) => ['PUT', path(w), { draining: false }], what: 'It gets requests again.' },
  { name: 'Sleep', when: (w) => w.kind !== 'http' && w.memory === 'awake', call: (w) => ['POST', `/release_memory_occupation${query(w)}`, {}], what: 'It finishes its work, then gives its GPU memory back. It serves nothing until it is woken.' },
  { name: 'Wake', when: (w) => w.kind !== 'http' && w.memory !== 'awake', call: (w) => ['POST', `/resume_memory_occupation${query(w)}`, {}], what: 'It takes its GPU memory again, gets the weights that it missed, and serves.' },
  { name: 'Sync weights', when: (w) => w.kind !== 'http' && w.weights !== 'current', call: (w) => ['POST', '/weights/sync', { workers: [w.worker_id] }], what: 'It is brought to the current weights of its model. The answer comes when that is done.' },
  { name: 'Restart', danger: true, when: (w) => w.launch, call: (w) => ['POST', `${path(w)}/restart`, {}], what: 'Its process is ended now, without a drain, and started again. Drain it first to lose nothing.' },
  { name: 'Remove', danger: true, when: () => true, call: (w) => ['DELETE', `${path(w)}?drain=true`, null], what: 'It finishes its work and leaves the pool. If the router launched it, its process is ended.' },
];

function open(...content) {
  const close = make('button', { className: 'close', type: 'button', textContent: '×', 'aria-label': 'Close' });
  close.onclick = () => dialog.close();
  dialog.replaceChildren(...content, close);
  if (!dialog.open) dialog.showModal();
}

function showWorker(id) {
  const worker = pool.workers.get(id);
  if (!worker) return;
  const launch = worker.launch || {};
  const learnt = Object.entries(worker.seconds_per_unit_of_work).map(([endpoint, value]) => `${wordOf(endpoint)} ${value.toPrecision(2)} s per unit`);
  const facts = [
    ['State', [stateOf(worker), whyOf(worker)].filter(Boolean).join(': ')], ['URL', worker.url], ['Pool', worker.pool], ['Models', (worker.models || []).join(', ')], ['Makes', (worker.task_types || []).join(', ')],
    ['Slots', `${slotsOf(worker)[0]} of ${worker.max_concurrency} in use${slotsOf(worker)[1] ? `, ${slotsOf(worker)[1]} in line` : ''}${worker.ghosts ? `, ${many(worker.ghosts, 'ghost')}` : ''}`],
    ['Weights', worker.weight_version === null ? 'not known' : `version ${worker.weight_version}, ${worker.weights}`], ['Learnt', learnt.join(', ')], ['Process', [`number ${worker.incarnation} at this URL`, launch.pid ? `pid ${launch.pid}` : '', launch.phase || ''].filter(Boolean).join(', ')],
    ['GPUs', (launch.gpus || []).join(', ')], ['Log', launch.log || ''], ['Known as', worker.origin],
  ];
  const list = make('dl');
  for (const [name, value] of facts) if (value) list.append(make('dt', { textContent: name }), make('dd', { textContent: value }));
  const buttons = make('div', { className: 'buttons' });
  for (const action of ACTIONS) {
    if (!action.when(worker)) continue;
    const button = make('button', { type: 'button', textContent: action.name });
    button.onclick = () => confirmAction({ title: `${action.name}: ${worker.name}`, does: action.name, danger: action.danger, what: action.what, call: () => action.call(worker) });
    buttons.append(button);
  }
  open(make('h2', { id: 'dialog-title', textContent: worker.name }), list, buttons);
}

function confirmAction({ title, does, what, call, danger, field, done }) {
  const go = make('button', { type: 'button', className: danger ? 'danger' : 'primary', textContent: does });
  const back = make('button', { type: 'button', textContent: 'Cancel' });
  const key = make('input', { type: 'password', autocomplete: 'off', spellcheck: false });
  const asks = make('label', { hidden: true }, 'Admin key (kept until this page is closed)', key);
  const answer = make('p', { className: 'answer', role: 'status' });
  back.onclick = () => dialog.close();
  go.onclick = async () => {
    if (!asks.hidden) adminKey = key.value;
    go.disabled = true;
    dress(answer, 'answer'); say(answer, 'Under way …');
    const [good, words, status] = await send(...call());
    go.disabled = false;
    dress(answer, good ? 'answer' : 'answer error'); say(answer, words);
    if (status === 401 || status === 403) { adminKey = ''; asks.hidden = false; key.value = ''; key.focus(); }
    if (good && done) { dialog.close(); done(); return; }
    if (good) { go.hidden = true; asks.hidden = true; back.textContent = 'Close'; back.focus(); }
  };
  key.addEventListener('keydown', (event) => { if (event.key === 'Enter') go.click(); });
  open(make('h2', { id: 'dialog-title', textContent: title }), make('p', { textContent: what }), field || null, asks, answer, make('div', { className: 'buttons' }, go, back));
  (field ? field.querySelector('input') : back).focus();
}

async function send(method, target, content) {
  const headers = { 'Content-Type': 'application/json' };
  if (adminKey) headers['X-API-Key'] = adminKey;
  try {
    const answer = await fetch(target, { method, headers, body: content === null ? undefined : JSON.stringify(content) });
    const said = await answer.json().catch(() => ({}));
    const rows = (said.results || []).filter((row) => row.status_code !== 200).map((row) => `${row.worker_url}: ${(row.body && row.body.error) || row.status_code}`);
    if (answer.ok && !rows.length) return [true, 'Done.', answer.status];
    return [false, rows.join('\n') || said.error || `The router answered ${answer.status}.`, answer.status];
  } catch (error) {
    return [false, `No answer: ${error.message}`, 0];
  }
}

$('sync').onclick = () => confirmAction({ title: 'Sync weights', does: 'Sync', what: 'All workers that are awake are brought to the current weights of their models. The answer comes when that is done.', call: () => ['POST', '/weights/sync', {}] });

$('scale').onclick = () => {
  const found = launchers(), first = found.keys().next().value;
  const name = make('select'), count = make('input', { type: 'number', min: 0, max: 1000, value: found.get(first) });
  for (const each of found.keys()) name.append(make('option', { textContent: each }));
  name.onchange = () => { count.value = found.get(name.value); };
  const field = make('div', {}, make('label', { hidden: found.size < 2 }, 'Launcher', name), make('label', {}, 'Number of workers', count));
  confirmAction({ title: 'Scale', does: 'Scale', what: 'To grow, the router starts more workers. To shrink, it drains and ends those with the highest numbers.', field, call: () => ['POST', '/launcher/scale', { launcher: name.value, num_workers: count.valueAsNumber }] });
};
