// What the page does beyond showing its first screen: filters, further rows, sorting, copying, and arrow keys on bars.
//
// The data is the report of a stranger. It reaches the page as text nodes and attributes, and never as markup. The
// elements that this script builds are those that the Rust modules beside it write; a test compares them.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const byId = (id) => document.getElementById(id);
  const UNKNOWN = '–';
  // Rows that one press of a button, and paper, add to each list.
  const STEP = { findings: 50, nodes: 40, rows: 200 };
  const PAPER = { findings: 200, nodes: 100, rows: 300 };

  // --- text, as in text.rs ---------------------------------------------------------------------------------------
  const grouped = (number) => number.toLocaleString('en-US');
  const counted = (number, noun) => `${grouped(number)} ${noun}${number === 1 ? '' : 's'}`;
  const gib = (mib, rounded) => {
    if (mib === null) return UNKNOWN;
    const tenths = rounded((mib * 10) / 1024);
    if (tenths === 0) return mib === 0 ? '0' : '<0.1';
    return `${grouped(Math.floor(tenths / 10))}.${tenths % 10}`;
  };
  const taken = (mib) => gib(mib, Math.ceil);
  const room = (mib) => gib(mib, Math.floor);
  const gpuName = (gpu) => {
    const letters = Array.from(gpu);
    if (letters.length > 16) return `${letters.slice(0, 8).join('')}…${letters.slice(-4).join('')}`;
    return gpu.startsWith('GPU-') ? gpu : `GPU ${gpu}`;
  };

  // --- elements --------------------------------------------------------------------------------------------------
  // An element with attributes, except those that are null, and with children; a string becomes a text node.
  const element = (tag, attributes, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const badge = (kind, sign, words) =>
    element('span', { class: `badge ${kind}` }, element('span', { 'aria-hidden': 'true' }, sign), ` ${words}`);

  // --- findings, as in findings.rs -------------------------------------------------------------------------------
  const readFinding = ([anchor, kind, namespace, name, container, node, message, remedy, pods, source, isNew]) => ({
    anchor, kind, namespace, name, container, node, message, remedy, pods, source, isNew,
  });
  const buildFinding = (finding) => {
    const object = finding.namespace ? `${finding.namespace}/${finding.name}` : finding.name;
    const facts = [
      finding.container === null ? null : `container ${finding.container}`,
      finding.node === null ? null : `node ${finding.node}`,
      finding.pods > 1 ? counted(finding.pods, 'pod') : null,
      finding.source,
    ].filter((fact) => fact !== null);
    const what = element('div', { class: 'what' },
      element('p', { class: 'object' },
        element('span', { class: 'kind' }, finding.kind), ' ', element('strong', {}, object), ' ',
        ...(finding.isNew ? [element('span', { class: 'new' }, 'new'), ' '] : []),
        ...(facts.length ? [element('span', { class: 'facts' }, facts.join(' · ')), ' '] : []),
        element('a', { class: 'link', href: `#${finding.anchor}`, 'aria-label': `Link to the finding about ${object}` }, '#')),
      element('p', { class: 'message' }, finding.message));
    const remedy = finding.remedy === '' ? null : element('div', { class: 'remedy' },
      element('pre', { tabindex: '0', role: 'group', 'aria-label': `Remedy for ${object}` }, element('code', {}, finding.remedy)),
      element('button', { type: 'button', class: 'copy', 'aria-label': `Copy the remedy for ${object}` }, 'Copy'));
    return element('li', { class: 'finding', id: finding.anchor }, what, remedy);
  };

  // --- nodes, as in nodes.rs and bars.rs -------------------------------------------------------------------------
  const STATUS = {
    overcommitted: ['overcommitted', '■', 'Overcommitted'],
    maybeOvercommitted: ['maybe', '▲', 'May be overcommitted'],
    unknown: ['unknown', '?', 'Not known'],
    full: ['full', '●', 'Full'],
    ok: ['ok', '○', 'Has room'],
  };
  const text = (number) => (number === null ? null : data.strings[number]);
  const readHolder = ([namespace, pod, container, amount, basis, bound, used = null, peak = null, seen = '']) => ({
    namespace: text(namespace), pod, container: text(container), amount, declared: basis === 1, byUse: basis === 2,
    bound: text(bound), used, peak, seen,
  });
  const readBar = ([name, gpus, headroom, outside, allocatable, held, free, used, holders, inUse, stale]) => {
    const start = headroom + outside;
    return {
      name, gpus, headroom, outside, allocatable, held, free, used, inUse, stale: stale === 1, start,
      end: start + allocatable, over: Math.max(0, held - allocatable), holders: holders.map(readHolder),
    };
  };
  const readNode = ([name, status, mode, product, pods, allocatable, held, free, unknown, bars, unassigned, notes]) => ({
    name, status, mode: text(mode), product: text(product), pods, allocatable, held, free, unknown: text(unknown),
    bars: bars.map(readBar), unassigned: unassigned.map(readHolder), notes,
  });
  const hundredths = (amount, domain) => Math.floor((amount * 10000) / domain);
  const percent = (part) => (part / 100).toFixed(2);
  const span = (from, to, domain) => {
    const [left, right] = [hundredths(from, domain), hundredths(to, domain)];
    return `left:${percent(left)}%;width:${percent(right - left)}%`;
  };
  const tip = (words) => element('span', { class: 'tip' }, words);
  const buildPart = (kind, from, to, domain, name, words) => {
    const [left, right] = [hundredths(from, domain), hundredths(to, domain)];
    const attributes = { class: left > 5000 ? `${kind} right` : kind, style: span(from, to, domain), tabindex: '0' };
    const label = name !== null && right - left >= 600 ? element('span', { class: 'name', 'aria-hidden': 'true' }, name) : null;
    return element('li', attributes, label, tip(words));
  };
  const buildParts = (bar, domain) => {
    const parts = [];
    if (bar.headroom > 0) parts.push(buildPart('kept', 0, bar.headroom, domain, null, `Driver and headroom: ${taken(bar.headroom)} GiB`));
    if (bar.outside > 0) parts.push(buildPart('kept', bar.headroom, bar.start, domain, null, `Not for pods: ${taken(bar.outside)} GiB`));
    let at = bar.start;
    for (const holder of bar.holders) {
      if (holder.amount === null) continue;
      const undeclared = holder.byUse ? ', declares nothing and was seen to use it' : holder.declared ? '' : ', declares nothing';
      const uses = holder.used === null ? '' : `, uses ${taken(holder.used)} GiB`;
      const peak = holder.peak === null ? '' : `, at most ${taken(holder.peak)} GiB so far`;
      const words = `${holder.namespace}/${holder.pod}, container ${holder.container}: ${taken(holder.amount)} GiB${undeclared}${uses}${peak}`;
      const part = buildPart(holder.declared ? 'seg' : 'seg undeclared', at, at + holder.amount, domain, holder.pod, words);
      if (filter.namespace === holder.namespace) part.classList.add('hit');
      parts.push(part);
      at += holder.amount;
    }
    if (bar.over > 0) {
      parts.push(element('li', { class: 'over', style: span(bar.end, bar.start + bar.held, domain) }, tip(`Over by ${taken(bar.over)} GiB`)));
    }
    if (bar.used !== null) {
      parts.push(buildPart(bar.stale ? 'used stale' : 'used', bar.headroom, bar.headroom + bar.used, domain, null, bar.inUse));
    }
    return parts;
  };
  const SLOT_MODE = 'It is not known which pod is on which GPU (mode slot: the device plugin chooses). '
    + 'The bar shows the GPUs together. A pod fits only where a whole slot is left on one GPU.';
  const buildBar = (bar, domain) => {
    const together = bar.name === '';
    const title = together ? `${counted(bar.gpus, 'GPU')} together` : gpuName(bar.name);
    return [
      together ? element('p', { class: 'say' }, SLOT_MODE) : null,
      element('div', { class: 'gpu' },
        element('p', { class: 'label', title: together ? null : bar.name }, title),
        element('ol', { class: 'bar', 'aria-label': `Memory of ${title}` },
          element('li', { class: 'track', style: span(0, bar.end, domain), 'aria-hidden': 'true' }),
          ...buildParts(bar, domain)),
        element('p', { class: 'amounts' },
          element('b', {}, taken(bar.held)), ` of ${room(bar.allocatable)}`,
          bar.over > 0 ? element('span', { class: 'by' }, ` over by ${taken(bar.over)}`) : element('span', {}, ` free ${room(bar.free)}`),
          bar.used === null ? null : element('span', { class: 'use' }, `in use ${taken(bar.used)}${bar.stale ? ', not current' : ''}`))),
    ];
  };
  const buildHolders = (node) => {
    const place = (bar) => (bar.name === '' ? `one of ${bar.gpus}` : gpuName(bar.name));
    const holders = [
      ...node.bars.flatMap((bar) => bar.holders.map((holder) => [place(bar), holder])),
      ...node.unassigned.map((holder) => ['not known', holder]),
    ];
    if (holders.length === 0) return null;
    const isUsed = holders.some(([, holder]) => holder.peak !== null);
    const isBounded = holders.some(([, holder]) => holder.bound !== null);
    const column = (title, kind) => element('th', { scope: 'col', class: kind }, title);
    const rows = holders.map(([where, holder]) => element('tr', {},
      element('th', { scope: 'row' }, `${holder.namespace}/${holder.pod}`),
      element('td', {}, holder.container),
      element('td', {}, where),
      element('td', { class: 'n' }, taken(holder.amount)),
      ...(isUsed ? [holder.used, holder.peak].map((amount) => element('td', { class: 'n' }, taken(amount))) : []),
      element('td', {}, holder.byUse ? 'use: declares nothing' : holder.declared ? 'declaration' : 'slot: declares nothing'),
      isBounded ? element('td', {}, holder.bound ?? '') : null,
      isUsed ? element('td', {}, holder.seen) : null));
    return element('details', {},
      element('summary', {}, counted(holders.length, 'holder')),
      element('table', { class: 'holders' },
        element('thead', {}, element('tr', {}, column('Namespace / pod', null), column('Container', null), column('GPU', null),
          column('GiB', 'n'), ...(isUsed ? [column('In use', 'n'), column('Peak', 'n')] : []), column('Counted by', null),
          isBounded ? column('Bounded by', null) : null, isUsed ? column('Seen', null) : null)),
        element('tbody', {}, ...rows)));
  };
  const buildAmounts = ({ unknown, held, allocatable, free }) => {
    const bold = (text) => element('b', {}, text);
    if (unknown === null) return [bold(taken(held)), ` of ${room(allocatable)} GiB held · largest next pod `, bold(room(free))];
    return held === 0 ? ['amount held not known'] : ['at least ', bold(taken(held)), ' GiB held'];
  };
  const buildNode = (raw) => {
    const node = readNode(raw);
    const [kind, sign, words] = STATUS[node.status];
    const extent = (bar) => Math.max(bar.end, bar.start + bar.held, bar.used === null ? 0 : bar.headroom + bar.used);
    const domain = Math.max(1, ...node.bars.map(extent));
    const facts = [node.product, `mode ${node.mode}`, counted(node.pods, 'pod')].filter((fact) => fact !== null);
    const more = node.unassigned.length > 0 && node.bars.length > 0;
    const article = element('article', { class: `node ${kind}` },
      element('header', {},
        element('h3', {}, node.name), badge(kind, sign, words),
        element('p', { class: 'facts' }, facts.join(' · ')),
        element('p', { class: 'amounts' }, ...buildAmounts(node))),
      node.unknown === null ? null : element('p', { class: 'say' }, element('strong', {}, 'Its GPUs are not known: '), node.unknown),
      ...node.notes.map((note) => element('p', { class: 'say' }, note)),
      ...node.bars.flatMap((bar) => buildBar(bar, domain)),
      more ? element('p', { class: 'say' }, `${counted(node.unassigned.length, 'container')} more of this node: it is not known on which of its GPUs. No bar shows them.`) : null,
      buildHolders(node));
    article.querySelectorAll('.bar').forEach(rove);
    return article;
  };

  // --- tables, as in tables.rs -----------------------------------------------------------------------------------
  const buildCell = (cell) => {
    if (typeof cell === 'string') return [cell];
    const [words, marked, bar] = cell;
    const mini = () => element('span', { class: 'mini', 'aria-hidden': 'true' }, element('i', { style: `width:${Math.min(bar, 100)}%` }));
    return [element('span', { class: marked ? 'bad' : null }, words), ...(bar === null ? [] : [mini()])];
  };
  const buildRow = (heads) => ([, , cells]) => element('tr', {}, ...cells.map((cell, index) => (index === 0
    ? element('th', { scope: 'row' }, ...buildCell(cell))
    : element('td', { class: heads[index].className || null }, ...buildCell(cell)))));

  // --- lists -----------------------------------------------------------------------------------------------------
  // One list of which the page shows a part. `parent` has the elements of the first items already.
  class List {
    constructor(kind, parent, items, build, after) {
      Object.assign(this, { kind, parent, items, build, unsorted: items, test: null, hits: items, shown: parent.childElementCount });
      this.first = Math.max(this.shown, 10);
      this.button = element('button', { type: 'button' });
      this.more = element('p', { class: 'more' }, this.button);
      this.button.addEventListener('click', () => {
        const before = this.shown;
        this.show(before + STEP[kind]);
        const next = this.parent.children[before];
        next?.setAttribute('tabindex', '-1');
        next?.focus({ preventScroll: true });
      });
      if (after.nextElementSibling?.classList.contains('more')) after.nextElementSibling.remove();
      after.after(this.more);
      this.offer();
    }

    // Shows the items that pass, from the first. Without a test, all pass.
    filter(test) {
      this.test = test;
      this.hits = test ? this.items.filter(test) : this.items;
      this.shown = 0;
      this.parent.replaceChildren();
      this.show(this.first);
    }

    // Shows as many items as before in another order. Without one, the order of the report.
    sort(compare) {
      const before = this.shown;
      this.items = compare ? [...this.unsorted].sort(compare) : this.unsorted;
      this.filter(this.test);
      this.show(before);
    }

    show(count) {
      const next = this.hits.slice(this.shown, count);
      this.parent.append(...next.map(this.build));
      this.shown += next.length;
      this.offer();
    }

    offer() {
      const left = this.hits.length - this.shown;
      this.more.hidden = left === 0;
      this.more.dataset.left = `${grouped(left)} more are not on paper`;
      this.button.textContent = `Show ${grouped(Math.min(STEP[this.kind], left))} more of ${grouped(left)}`;
    }
  }

  const groups = Array.from(document.querySelectorAll('.group'), (section, index) => {
    const parent = section.querySelector('ul.findings');
    const findings = data.findings[index][2].map(readFinding);
    return { section, reason: data.findings[index][1], count: section.querySelector('.count'),
      list: new List('findings', parent, findings, buildFinding, parent) };
  });
  const nodes = new List('nodes', document.querySelector('.nodes'), data.nodes, buildNode, document.querySelector('.nodes'));
  const tables = Object.entries(data.tables).filter(([id]) => byId(id)).map(([id, rows]) => {
    const table = byId(id);
    const heads = table.tHead.rows[0].cells;
    const list = new List('rows', table.tBodies[0], rows, buildRow(heads), table.parentElement);
    const none = element('p', { class: 'none', hidden: '' }, 'Nothing here matches the filter.');
    table.parentElement.after(none);
    return { list, none, heads, hasNodes: rows.some(([, node]) => node !== '') };
  });
  // Each head of a column becomes a button that sorts: one way, the other way, as it was.
  const words = (row, column) => (typeof row[2][column] === 'string' ? row[2][column] : row[2][column][0]);
  // What is not a number, such as an amount that is not known, is less than each number.
  const amount = (text) => (text === '<0.1' ? 0.05 : Number.parseFloat(text.replaceAll(',', ''))) || (/^0/.test(text) ? 0 : -1);
  const compare = (column, isNumber, way) => (one, other) => {
    const [left, right] = [words(one, column), words(other, column)];
    return way * (isNumber ? amount(left) - amount(right) : left.localeCompare(right, 'en', { numeric: true }));
  };
  for (const { list, heads } of tables) {
    Array.from(heads, (head, column) => {
      const isNumber = head.classList.contains('n');
      const order = isNumber ? ['descending', 'ascending'] : ['ascending', 'descending'];
      const button = element('button', { type: 'button', class: 'sort' }, ...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const next = order[order.indexOf(head.getAttribute('aria-sort')) + 1];
        for (const other of heads) other.removeAttribute('aria-sort');
        if (next) head.setAttribute('aria-sort', next);
        list.sort(next ? compare(column, isNumber, next === 'ascending' ? 1 : -1) : null);
      });
    });
  }
  const lists = [...groups.map((group) => group.list), nodes, ...tables.map((table) => table.list)];

  // --- filters ---------------------------------------------------------------------------------------------------
  const filter = { query: '', namespace: '', node: '' };
  const fields = { query: byId('q'), namespace: byId('ns'), node: byId('node') };
  const form = document.querySelector('.filters');
  const has = (parts, words) => {
    const hay = parts.join('\n').toLowerCase();
    return words.every((word) => hay.includes(word));
  };
  const holdersOf = (node) => [...node[9].flatMap((bar) => bar[8]), ...node[10]];
  const tests = (words, namespace, node) => ({
    finding: (reason) => (finding) => (!namespace || finding.namespace === namespace)
      && (!node || (finding.node ?? '').toLowerCase().includes(node) || (finding.kind === 'Node' && finding.name.toLowerCase().includes(node)))
      && has([reason, finding.kind, finding.namespace, finding.name, finding.container ?? '', finding.node ?? '',
        finding.message, finding.remedy, finding.source ?? ''], words),
    node: (item) => {
      const named = data.strings.indexOf(namespace);
      return (!node || item[0].toLowerCase().includes(node))
        && (!namespace || holdersOf(item).some((holder) => holder[0] === named))
        && (!words.length || has([item[0], STATUS[item[1]][2], text(item[2]), text(item[3]) ?? '', text(item[8]) ?? '',
          ...item[9].map((bar) => bar[0]), ...holdersOf(item).map((holder) => `${text(holder[0])}/${holder[1]} ${text(holder[2])}`)], words));
    },
    row: (hasNodes) => ([of, on, cells]) => (!namespace || of === namespace)
      && (!node || !hasNodes || on.toLowerCase().includes(node))
      && has(cells.map((cell) => (typeof cell === 'string' ? cell : cell[0])), words),
  });

  const nothing = new Map(); // from the id of a section to the sentence that nothing in it matches
  const say = (id, isEmpty) => {
    if (!nothing.has(id)) {
      const sentence = element('p', { class: 'none' }, 'Nothing here matches the filter.');
      byId(id).append(sentence);
      nothing.set(id, sentence);
    }
    nothing.get(id).hidden = !isEmpty;
  };
  const apply = () => {
    const words = filter.query.toLowerCase().split(/\s+/).filter((word) => word !== '');
    const active = words.length > 0 || filter.namespace !== '' || filter.node !== '';
    const test = tests(words, filter.namespace, filter.node.trim().toLowerCase());
    let [hits, all] = [0, 0];
    for (const group of groups) {
      group.list.filter(active ? test.finding(group.reason) : null);
      const [found, total] = [group.list.hits.length, group.list.items.length];
      group.section.hidden = found === 0;
      group.count.textContent = found === total ? counted(total, 'finding') : `${grouped(found)} of ${counted(total, 'finding')}`;
      hits += found;
      all += total;
    }
    nodes.filter(active ? test.node : null);
    let [rows, allRows] = [0, 0];
    for (const table of tables) {
      table.list.filter(active ? test.row(table.hasNodes) : null);
      rows += table.list.hits.length;
      allRows += table.list.items.length;
    }
    document.querySelectorAll('.states').forEach((part) => { part.hidden = active; });
    say('findings', active && hits === 0 && all > 0);
    say('nodes', active && nodes.hits.length === 0 && data.nodes.length > 0);
    for (const { list, none } of tables) none.hidden = list.hits.length > 0;
    form.querySelector('button').hidden = !active;
    byId('hits').textContent = active
      ? `${grouped(hits)} of ${counted(all, 'finding')}, ${grouped(nodes.hits.length)} of ${counted(data.nodes.length, 'node')} and ${grouped(rows)} of ${counted(allRows, 'row')} match.`
      : '';
  };

  // --- the address: #q=…&ns=…&node=…&theme=…, or the id of a finding ---------------------------------------------
  const KEYS = { query: 'q', namespace: 'ns', node: 'node' };
  const write = () => {
    const parameters = new URLSearchParams();
    for (const [name, key] of Object.entries(KEYS)) if (filter[name]) parameters.set(key, filter[name]);
    if (document.documentElement.dataset.theme) parameters.set('theme', document.documentElement.dataset.theme);
    try {
      history.replaceState(null, '', `#${parameters}`);
    } catch { /* some viewers of files forbid it; the page works without */ }
  };
  const reveal = (anchor) => {
    const group = groups.find((one) => one.list.items.some((finding) => finding.anchor === anchor));
    if (!group) return;
    if (!byId(anchor)) {
      Object.assign(filter, { query: '', namespace: '', node: '' });
      for (const name of Object.keys(fields)) fields[name].value = '';
      apply();
      group.list.show(group.list.items.findIndex((finding) => finding.anchor === anchor) + 1);
    }
    byId(anchor).scrollIntoView({ block: 'center' });
  };
  const read = () => {
    const hash = location.hash.slice(1);
    if (hash.startsWith('f-')) {
      reveal(hash);
      return;
    }
    if (hash !== '' && !hash.includes('=')) return; // a section
    const parameters = new URLSearchParams(hash);
    const before = JSON.stringify(filter);
    for (const [name, key] of Object.entries(KEYS)) {
      fields[name].value = parameters.get(key) ?? '';
      filter[name] = fields[name].value; // a namespace that the report does not have is none
    }
    const theme = parameters.get('theme');
    if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
    if (JSON.stringify(filter) !== before) apply();
  };

  // --- keys, buttons, paper --------------------------------------------------------------------------------------
  // One stop of the tab key for each bar; the arrow keys go from part to part.
  function rove(bar) {
    bar.querySelectorAll('[tabindex]').forEach((part, index) => part.setAttribute('tabindex', index === 0 ? '0' : '-1'));
  }
  const step = (event) => {
    const part = event.target.closest?.('.bar > [tabindex]');
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!part || !way) return;
    const parts = Array.from(part.parentElement.querySelectorAll('[tabindex]'));
    const next = parts[parts.indexOf(part) + way];
    if (!next) return;
    part.setAttribute('tabindex', '-1');
    next.setAttribute('tabindex', '0');
    next.focus();
    event.preventDefault();
  };
  const copy = async (button) => {
    const code = button.parentElement.querySelector('code');
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not every viewer of files has a clipboard
      getSelection().selectAllChildren(code);
      isCopied = document.execCommand('copy');
    }
    button.textContent = isCopied ? 'Copied' : 'Selected';
    byId('hits').textContent = isCopied ? 'Copied the remedy.' : 'The remedy is selected: copy it with Ctrl+C, or ⌘C.';
    setTimeout(() => { button.textContent = 'Copy'; }, isCopied ? 1500 : 4000);
  };

  document.addEventListener('keydown', (event) => {
    step(event);
    const typing = event.target.closest?.('input, select, textarea');
    if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      fields.query.focus();
    }
    if (event.key === 'Escape' && typing === fields.query) fields.query.blur();
  });
  document.addEventListener('click', (event) => {
    const button = event.target.closest?.('.copy');
    if (button) copy(button);
  });
  let opened = [];
  addEventListener('beforeprint', () => {
    opened = Array.from(document.querySelectorAll('details:not([open])'));
    for (const list of lists) list.show(Math.max(list.shown, PAPER[list.kind]));
    document.querySelectorAll('details').forEach((details) => { details.open = true; });
  });
  addEventListener('afterprint', () => opened.forEach((details) => { details.open = false; }));

  const namespaces = new Set(data.findings.flatMap(([, , findings]) => findings.map((finding) => finding[2])));
  for (const rows of Object.values(data.tables)) for (const [namespace] of rows) namespaces.add(namespace);
  for (const node of data.nodes) for (const holder of holdersOf(node)) namespaces.add(text(holder[0]));
  namespaces.delete('');
  fields.namespace.append(...Array.from(namespaces).sort().map((name) => element('option', { value: name }, name)));
  let typed;
  const changed = () => {
    for (const [name, field] of Object.entries(fields)) filter[name] = field.value;
    apply();
    write();
  };
  form.addEventListener('input', () => {
    clearTimeout(typed);
    typed = setTimeout(changed, 150); // a pause in typing
  });
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('reset', () => setTimeout(changed)); // once the fields are empty
  addEventListener('hashchange', read);
  document.documentElement.classList.add('script');
  form.hidden = false;
  document.querySelectorAll('.bar').forEach(rove);
  read();
})();
