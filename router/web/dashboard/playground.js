// Make an image or a video through the router, and show the same request as code.

const form = $('play');
const field = (name) => form.elements[name];

painters.push([['workers'], () => {
  const models = [...new Set([...pool.workers.values()].flatMap((worker) => worker.models || []))].sort();
  const key = JSON.stringify(models);
  if (field('model').dataset.key === key) return;
  const before = field('model').value;
  field('model').dataset.key = key;
  field('model').replaceChildren(...models.map((model) => make('option', { textContent: model })));
  if (models.includes(before)) field('model').value = before;
  code();
}]);

// What two versions of the weights make of one seed: the versions that workers of the model have now.
painters.push([['workers'], () => offerWeights()]);
field('model').addEventListener('change', () => offerWeights());

function offerWeights() {
  const model = field('model').value, found = new Map();
  const able = [...pool.workers.values()].filter((worker) => worker.routable && (worker.models || []).includes(model));
  const pools = new Set(able.map((worker) => worker.pool));
  for (const worker of able) {
    if (worker.weight_version === null) continue;
    const headers = { 'X-Exact-Weight-Version': String(worker.weight_version) };
    if (pools.size > 1) headers['X-Pool'] = worker.pool;
    found.set(JSON.stringify(headers), [worker.weight_version, pools.size > 1 ? `v${worker.weight_version} in ${worker.pool}` : `v${worker.weight_version}`]);
  }
  const versions = [...found].sort((one, other) => other[1][0] - one[1][0]), key = JSON.stringify(versions);
  for (const [name, none] of [['weights', 'any'], ['against', 'none']]) {
    const select = field(name), before = select.value;
    if (select.dataset.key === key) continue;
    select.dataset.key = key;
    select.replaceChildren(make('option', { value: '', textContent: none }), ...versions.map(([value, [, words]]) => make('option', { value, textContent: words })));
    select.value = found.has(before) ? before : '';
  }
}

const headersOf = (name) => field(name).value ? JSON.parse(field(name).value) : {};
const wordsOf = (name) => field(name).value ? `weights ${field(name).selectedOptions[0].textContent}` : '';

function wantedRequest(seed) {
  const video = field('make').value === 'video';
  const body = { model: field('model').value, prompt: field('prompt').value, size: field('size').value, num_inference_steps: Number(field('steps').value), seed };
  if (!body.model) delete body.model;
  if (video) return ['/v1/videos', { ...body, seconds: Number(field('seconds').value) || 1 }];
  return ['/v1/images/generations', { ...body, response_format: 'b64_json', output_format: 'png' }];
}

let language = 'curl';

function code() {
  form.querySelector('.video').hidden = field('make').value !== 'video';
  const [target, body] = wantedRequest(Number(field('seed').value)), root = location.origin;
  const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const python = (value) => JSON.stringify(value, null, 4).replaceAll('\n', '\n    ');
  const video = target === '/v1/videos';
  const chosen = headersOf('weights'), headers = Object.keys(chosen).length ? `, headers=${JSON.stringify(chosen)}` : '';
  let text;
  if (language === 'curl') {
    const more = Object.entries(chosen).map(([name, value]) => ` -H ${shell(`${name}: ${value}`)}`).join('');
    text = `curl -s ${root}${target} -H 'Content-Type: application/json'${more} \\\n  -d ${shell(JSON.stringify(body))}`;
    if (video) text = `ID=$(${text} \\\n  | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')\nuntil curl -s ${root}${target}/$ID | grep -E '"(completed|failed)"'; do sleep 1; done\ncurl -s ${root}${target}/$ID/content -o video.mp4`;
    else text += ` \\\n  | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))' > image.png`;
  } else if (video) {
    text = `import time\n\nimport httpx\n\nwith httpx.Client(base_url=${JSON.stringify(root)}, timeout=None) as router:\n    job = router.post(${JSON.stringify(target)}, json=${python(body)}${headers}).json()\n    while job["status"] not in ("completed", "failed"):\n        time.sleep(1)\n        job = router.get(f"${target}/{job['id']}").json()\n    video = router.get(f"${target}/{job['id']}/content")\n    open("video.mp4", "wb").write(video.content)`;
  } else {
    text = `import base64\n\nimport httpx\n\nwith httpx.Client(base_url=${JSON.stringify(root)}, timeout=None) as router:\n    answer = router.post(${JSON.stringify(target)}, json=${python(body)}${headers}).json()\n    open("image.png", "wb").write(base64.b64decode(answer["data"][0]["b64_json"]))`;
  }
  say($('code'), text);
}

for (const [id, name] of [['as-curl', 'curl'], ['as-python', 'python']]) {
  $(id).onclick = () => {
    language = name;
    $('as-curl').setAttribute('aria-pressed', String(name === 'curl'));
    $('as-python').setAttribute('aria-pressed', String(name === 'python'));
    code();
  };
}
form.addEventListener('input', code);

$('copy').onclick = async () => {
  try { await navigator.clipboard.writeText($('code').textContent); say($('copy'), 'Copied'); } catch {
    const range = document.createRange(); // without TLS there is no clipboard: select it for the user
    range.selectNodeContents($('code')); getSelection().removeAllRanges(); getSelection().addRange(range);
    say($('copy'), 'Selected');
  }
  setTimeout(() => say($('copy'), 'Copy'), 1500);
};

let round = 0, urls = [];

form.addEventListener('submit', (event) => {
  event.preventDefault();
  round += 1;
  for (const url of urls) URL.revokeObjectURL(url);
  urls = [];
  const seeds = [field('seed').value, field('other').value].filter((seed) => seed !== '').map(Number);
  const weights = field('against').value ? ['weights', 'against'] : ['weights'];
  $('results').replaceChildren(...seeds.flatMap((seed) => weights.map((name) => generate(seed, headersOf(name), wordsOf(name), round))));
});

function generate(seed, weights, wanted, mine) {
  const [target, body] = wantedRequest(seed), [width, height] = body.size.split('x');
  const pending = make('div', { className: 'pending', textContent: 'Waiting' }), name = [`seed ${seed}`, wanted].filter(Boolean).join(', '), caption = make('figcaption', { textContent: name });
  const figure = make('figure', {}, pending, caption), began = Date.now();
  figure.style.setProperty('--ratio', `${width} / ${height}`);
  const timer = setInterval(() => say(pending, duration((Date.now() - began) / 1000)), 500);
  fetchResult(target, body, weights, () => mine === round).then(([blob, answer]) => {
    if (mine !== round) return;
    const url = URL.createObjectURL(blob), video = target === '/v1/videos';
    urls.push(url);
    pending.replaceWith(video ? make('video', { src: url, controls: true, loop: true, autoplay: true, muted: true, playsInline: true }) : make('img', { src: url, alt: `${body.prompt}, ${name}` }));
    const version = answer.headers.get('X-Weight-Version'), worker = pool.workers.get(answer.headers.get('X-Worker-Id'));
    say(caption, [`seed ${seed}`, duration((Date.now() - began) / 1000), worker ? worker.name : '', version ? `weights v${version}` : ''].filter(Boolean).join(' · '));
  }).catch((error) => { say(pending, 'Nothing was made'); caption.classList.add('error'); say(caption, `${name}: ${error.message}`); }).finally(() => clearInterval(timer));
  return figure;
}

async function fetchResult(target, body, weights, wanted) {
  const headers = { 'Content-Type': 'application/json', 'X-Client-Id': 'dashboard', ...weights };
  const first = await fetch(target, { method: 'POST', headers, body: JSON.stringify(body) });
  const said = await read(first);
  if (target !== '/v1/videos') {
    const bytes = Uint8Array.from(atob(said.data[0].b64_json), (letter) => letter.charCodeAt(0));
    return [new Blob([bytes], { type: 'image/png' }), first];
  }
  let job = said;
  while (job.status !== 'completed') {
    if (job.status === 'failed') throw new Error((job.error && job.error.message) || 'the video failed');
    if (!wanted()) throw new Error('given up');
    await new Promise((resolve) => setTimeout(resolve, 500));
    job = await read(await fetch(`${target}/${encodeURIComponent(said.id)}`));
  }
  const content = await fetch(`${target}/${encodeURIComponent(said.id)}/content`);
  if (!content.ok) await read(content);
  return [await content.blob(), first];
}

async function read(answer) {
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const words = said.error || said.detail || `the router answered ${answer.status}`;
  throw new Error(typeof words === 'string' ? words : words.message || JSON.stringify(words));
}

code();
follow();
