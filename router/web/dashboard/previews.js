// The newest images, if the router keeps them (--dashboard-previews). Each is fetched once.

const thumbs = new Map(); // by id
let previewsDue = false, previewsShown = 0;

painters.push([['previews'], () => {
  $('previews').hidden = pool.previews === null;
  if (pool.previews !== null) fetchPreviews();
}]);

const withKey = () => adminKey ? { headers: { 'X-API-Key': adminKey } } : {};

async function fetchPreviews() {
  if (previewsDue) return;
  previewsDue = true;
  const newest = pool.previews;
  try {
    const answer = await fetch('/previews', withKey());
    if (answer.status === 401 || answer.status === 403) { askForPreviews(); return; }
    if (!answer.ok) return;
    await showPreviews((await answer.json()).previews);
    previewsShown = newest;
  } catch { /* the next change tries again */ } finally {
    setTimeout(() => { previewsDue = false; if (previewsShown !== pool.previews && !$('ask-previews')) fetchPreviews(); }, 3000);
  }
}

function askForPreviews() {
  if ($('ask-previews')) return;
  const button = make('button', { type: 'button', id: 'ask-previews', textContent: 'Show with the admin key' });
  button.onclick = () => confirmAction({ title: 'Newest images', does: 'Show', what: 'They are what other clients have made, so the router shows them only with its admin key.', call: () => ['GET', '/previews', null], done: () => { $('previews-card').replaceChildren(); fetchPreviews(); } });
  forgetPreviews(() => true);
  $('previews-card').replaceChildren(make('p', { className: 'empty' }, 'The admin key is needed. ', button));
}

function forgetPreviews(meant) {
  for (const [id, thumb] of thumbs) if (meant(id)) { URL.revokeObjectURL(thumb.url); thumb.element.remove(); thumbs.delete(id); }
}

async function showPreviews(rows) {
  await Promise.all(rows.filter((row) => !thumbs.has(row.id)).map(async (row) => {
    const answer = await fetch(`/previews/${row.id}`, withKey());
    if (answer.ok && !thumbs.has(row.id)) thumbs.set(row.id, newThumb(row, URL.createObjectURL(await answer.blob())));
  }));
  // An older one stays until there is another in its place.
  const ids = [...thumbs.keys()].sort((one, other) => other - one).slice(0, 12);
  forgetPreviews((id) => !ids.includes(id));
  const shown = ids.map((id) => thumbs.get(id));
  if (shown.length) $('previews-card').replaceChildren(make('div', { className: 'thumbs', role: 'list' }, ...shown.map((thumb) => thumb.element)));
  else $('previews-card').replaceChildren(make('p', { className: 'empty', textContent: 'No image has passed yet.' }));
  for (const thumb of shown) tellThumb(thumb);
  say($('previews-count'), shown.length ? `the last ${shown.length}` : '');
}

function newThumb(row, url) {
  const worker = pool.workers.get(row.worker_id), name = worker ? worker.name : row.worker_id;
  const words = [name, row.weight_version === null ? '' : `v${row.weight_version}`].filter(Boolean).join(' · ');
  const button = make('button', { type: 'button', className: 'thumb', 'aria-label': `Image of ${words}` }, make('img', { src: url, alt: '', decoding: 'async' }));
  const age = make('span');
  button.onclick = () => open(make('h2', { id: 'dialog-title', textContent: words }), make('img', { className: 'large', src: url, alt: `Image of ${words}` }));
  return { row, url, age, element: make('figure', { role: 'listitem' }, button, make('figcaption', {}, make('span', { className: 'cut', textContent: name }), age)) };
}

function tellThumb(thumb) {
  const age = Math.max(0, now() - thumb.row.at);
  const version = thumb.row.weight_version === null ? '' : `v${thumb.row.weight_version}, `;
  say(thumb.age, version + (age < 1 ? 'now' : `${age < 60 ? `${Math.floor(age)} s` : age < 3600 ? `${Math.floor(age / 60)} min` : `${Math.floor(age / 3600)} h`} ago`));
}

setInterval(() => { for (const thumb of thumbs.values()) tellThumb(thumb); }, 1000);
