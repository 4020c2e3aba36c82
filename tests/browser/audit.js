// What a keyboard or a screen reader would miss, as sentences.
(() => {
  const found = [];
  const shown = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && element.getClientRects().length > 0;
  const tell = (element) => `${element.tagName.toLowerCase()}${element.id ? `#${element.id}` : ''}.${element.className.baseVal ?? element.className} "${element.textContent.trim().slice(0, 30)}"`;
  const nameOf = (element) => {
    const by = element.getAttribute('aria-labelledby');
    const labels = by ? by.split(' ').map((id) => document.getElementById(id)?.textContent) : [...element.labels || []].map((label) => label.textContent);
    const inner = [...element.querySelectorAll('img')].map((image) => image.alt).join(' ');
    return (element.getAttribute('aria-label') || labels.join(' ') || element.textContent || inner || element.title || '').trim();
  };
  const scope = document.querySelector('dialog[open]') || document;

  for (const element of scope.querySelectorAll('button, a, input, select, textarea, [tabindex], dialog, [role=img], [role=group], section, nav, video')) {
    if (shown(element) && !nameOf(element) && element.getAttribute('aria-hidden') !== 'true') found.push(`no name: ${tell(element)}`);
  }
  for (const image of scope.querySelectorAll('img')) if (!image.hasAttribute('alt')) found.push(`no alt: ${tell(image)}`);
  for (const svg of scope.querySelectorAll('svg')) {
    if (shown(svg) && svg.getAttribute('aria-hidden') !== 'true' && svg.getAttribute('role') !== 'img') found.push(`a drawing without a role: ${tell(svg)}`);
  }
  if (!document.documentElement.lang) found.push('no language');
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  let level = 0;
  for (const heading of document.querySelectorAll('h1, h2, h3')) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) found.push(`a heading is left out before: ${tell(heading)}`);
    level = own;
  }
  const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`twice: #${id}`);

  // Contrast: WCAG 2.2, 1.4.3. Drawings count as text if they have any.
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const colour = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((part, index) => part * top[3] + under[index] * (1 - top[3]));
  const background = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(colour(getComputedStyle(each).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under), colour('white'));
  };
  const light = (parts) => {
    const [r, g, b] = parts.map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const walker = document.createTreeWalker(scope === document ? document.body : scope, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !shown(element) || element.closest('script, style, title, noscript, option, :disabled')) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const under = background(element), ink = over(colour(element.closest('svg') ? style.fill : style.color), under);
    const ratio = contrast(ink, under);
    if (ratio < (large ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}: ${tell(element)}`);
  }
  // Marks that carry a meaning: 1.4.11.
  for (const mark of scope.querySelectorAll('.dot, #shares i, .slots i.on, .bar i, .primary')) {
    if (!shown(mark) || !mark.getBoundingClientRect().width) continue;
    const style = getComputedStyle(mark), own = colour(style.backgroundColor);
    if (own[3] === 0) continue; // a ring, by its shadow
    const ratio = contrast(over(own, background(mark.parentElement)), background(mark.parentElement));
    if (ratio < 3) found.push(`contrast of a mark ${ratio.toFixed(2)}: ${tell(mark)}`);
  }
  return [...new Set(found)];
})()
