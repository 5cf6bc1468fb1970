"use strict";
// Draws the tables of the page as a graph. All texts come from the tables and are set as text, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const get = id => document.getElementById(id);
  const tokens = [...get("tokens").children].map(item => item.textContent);
  const layers = Number(get("canvas").dataset.layers);
  const nodes = [...get("nodes").tBodies[0].rows].map((row, number) => ({
    number, row, kind: row.dataset.kind, level: Number(row.dataset.row), position: Number(row.dataset.position),
    name: row.dataset.name, influence: Number(row.dataset.influence), confirmed: row.dataset.confirmed,
    ref: row.dataset.ref, label: row.dataset.label ?? "", inputs: [], outputs: [], pinned: row.dataset.pinned === "1", group: null,
  }));
  const links = [...get("links").tBodies[0].rows].map(row => ({
    source: nodes[row.dataset.source], target: nodes[row.dataset.target], weight: Number(row.dataset.weight),
    verified: row.dataset.verified === "1",
  }));
  for (const link of links) {
    link.source.outputs.push(link);
    link.target.inputs.push(link);
  }
  const byWeight = (a, b) => Math.abs(b.weight) - Math.abs(a.weight);
  for (const node of nodes) { node.inputs.sort(byWeight); node.outputs.sort(byWeight); }
  let chosen = null;
  // Groups are nodes that stand for several. A page without the place to keep them has none.
  const place = get("groups");
  const byRef = new Map(nodes.map(node => [node.ref, node]));
  let groups = [];
  // What people pinned and grouped in an earlier graph of this name, and this one lacks: not drawn, but saved again.
  let unseen = {pinned: [], groups: []}, unsaved = false;

  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const html = (name, parent, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    if (parent) parent.append(element);
    return element;
  };

  // Places: the nodes of one layer and token stand side by side, in as many lines as are needed.
  const PER_LINE = 6, STEP = 16, LEFT = 64, GAP = 26;
  const cells = new Map();
  for (const node of nodes) {
    const key = node.level * 1e6 + node.position;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
  }
  const widths = tokens.map((text, position) => {
    const most = Math.max(1, ...[...cells.values()].filter(cell => cell[0].position === position).map(cell => cell.length));
    return Math.max(Math.min(most, PER_LINE) * STEP, Math.min(text.length, 12) * 7.5) + GAP;
  });
  const starts = widths.map((_, position) => LEFT + widths.slice(0, position).reduce((a, b) => a + b, 0));
  const heights = Array.from({length: layers + 2}, (_, level) => {
    const most = Math.max(1, ...[...cells.values()].filter(cell => cell[0].level === level).map(cell => cell.length));
    return Math.ceil(most / PER_LINE) * STEP + GAP;
  });
  const total = heights.reduce((a, b) => a + b, 0);
  const tops = heights.map((height, level) => total - heights.slice(0, level + 1).reduce((a, b) => a + b, 0) + 10);
  for (const cell of cells.values()) {
    cell.sort((a, b) => a.influence - b.influence);
    cell.forEach((node, index) => {
      node.x = starts[node.position] + (index % PER_LINE) * STEP + STEP / 2;
      node.y = tops[node.level] + Math.floor(index / PER_LINE) * STEP + STEP / 2;
    });
  }

  get("drawing").hidden = false;
  const width = LEFT + widths.reduce((a, b) => a + b, 0), height = total + 40;
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Attribution graph"}, get("canvas"));
  if (width <= 1.4 * get("canvas").clientWidth) {  // small enough to be scaled to the page
    svg.setAttribute("width", "100%");
    svg.removeAttribute("height");
    svg.style.maxWidth = `${1.5 * width}px`;  // a graph of few nodes is not blown up
  }
  heights.forEach((_, level) => {
    const y = tops[level] - GAP / 2;
    make("line", {x1: 0, x2: width, y1: y, y2: y, class: "grid"}, svg);
    const name = level === 0 ? "tokens" : level === layers + 1 ? "output" : `layer ${level - 1}`;
    make("text", {x: 4, y: tops[level] + STEP / 2 + 4}, svg, name);
  });
  tokens.forEach((text, position) => make("text", {x: starts[position], y: height - 14, class: "token"}, svg, text.length > 12 ? text.slice(0, 11) + "…" : text));

  const largest = Math.max(1e-12, ...links.map(link => Math.abs(link.weight)));
  const curve = (a, b) => { const middle = (a.y + b.y) / 2; return `M${a.x},${a.y} C${a.x},${middle} ${b.x},${middle} ${b.x},${b.y}`; };
  const underlay = make("g", {}, svg), overlay = make("g", {}, svg);
  for (const link of links) {
    const {source, target} = link;
    link.line = make("path", {
      d: curve(source, target),
      class: "link " + (link.weight > 0 ? "adds" : "takes"), "stroke-width": (0.4 + 3.6 * Math.abs(link.weight) / largest).toFixed(2),
    }, underlay);
    if (!link.verified) link.line.setAttribute("stroke-dasharray", "4 3");
  }
  for (const node of nodes) {
    const mark = make("g", {class: "node " + node.kind + (node.confirmed === "0" ? " hollow" : ""), tabindex: 0, role: "button", "aria-label": node.name}, overlay);
    const {x, y} = node;
    if (node.kind === "feature") make("circle", {cx: x, cy: y, r: 5}, mark);
    else if (node.kind === "error") make("path", {d: `M${x},${y - 5}L${x + 5},${y}L${x},${y + 5}L${x - 5},${y}Z`}, mark);
    else make("rect", {x: x - 5, y: y - 5, width: 10, height: 10}, mark);
    make("title", {}, mark, node.name);
    mark.addEventListener("click", () => choose(node));
    mark.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(node); }
      if (event.key === "p") { pin(node); }
    });
    node.mark = mark;
  }

  const stands = node => (place && get("grouped").checked && node.group) || node;  // what is drawn in place of a node
  const merged = (group, end) => {  // the links of a group by what is drawn at their other end, with added weights
    const other = end === "source" ? "inputs" : "outputs", found = new Map();
    for (const link of group.nodes.flatMap(node => node[other])) {
      const far = stands(link[end]);
      if (far === group) continue;
      if (!found.has(far)) found.set(far, {[end]: far, weight: 0, verified: true});
      found.get(far).weight += link.weight;
      found.get(far).verified &&= link.verified;
    }
    return [...found.values()].sort(byWeight);
  };
  const drawGroup = group => {
    const x = group.nodes.reduce((sum, node) => sum + node.x, 0) / group.nodes.length;
    const y = group.nodes.reduce((sum, node) => sum + node.y, 0) / group.nodes.length;
    const text = group.name.length > 18 ? group.name.slice(0, 17) + "…" : group.name, half = 3.6 * text.length + 6;
    Object.assign(group, {x: Math.min(Math.max(x, half + 2), width - half - 2), y});
    group.mark = make("g", {class: "node group", tabindex: 0, role: "button", "aria-label": `group ${group.name}`}, overlay);
    make("rect", {x: group.x - half, y: y - 9, width: 2 * half, height: 18, rx: 7}, group.mark);
    make("text", {x: group.x, y: y + 4, "text-anchor": "middle", class: "group-name"}, group.mark, text);
    make("title", {}, group.mark, `${group.name}: ${group.nodes.length} nodes`);
    group.mark.addEventListener("click", () => choose(group));
    group.mark.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(group); }
    });
  };
  const group = (name, members) => {
    const own = members.filter(node => node && node.group === null && node.kind !== "logit");
    if (!own.length || !name.trim()) return null;
    const made = {name: name.trim(), nodes: own, kind: "group", pinned: false, unseen: []};
    for (const node of own) node.group = made;
    groups.push(made);
    drawGroup(made);
    return made;
  };
  const ungroup = made => {
    for (const node of made.nodes) node.group = null;
    made.mark.remove();
    groups = groups.filter(each => each !== made);
    if (chosen === made) chosen = null;
  };
  const say = (text, bad = false) => { get("group-said").textContent = text; get("group-said").className = bad ? "small note bad" : "small"; };
  const later = () => { if (place.dataset.save) { unsaved = true; say("Not saved yet."); } };
  const listGroups = () => {
    get("group-list").replaceChildren();
    for (const made of groups) {
      const item = html("li", get("group-list"));
      const name = html("button", item, made.name);
      name.type = "button";
      name.addEventListener("click", () => choose(made));
      html("span", item, ` ${made.nodes.length} nodes `, "quiet");
      const remove = html("button", item, "Dissolve");
      remove.type = "button";
      remove.setAttribute("aria-label", `Dissolve the group ${made.name}`);
      remove.addEventListener("click", () => { ungroup(made); changed(); });
    }
    if (!groups.length) html("li", get("group-list"), "none", "quiet");
  };
  const changed = () => { listGroups(); panel(); draw(); later(); };

  const visible = node => {
    if (get("only-pinned").checked) return node.pinned || node === chosen;
    if (node.pinned || node.kind === "token" || node.kind === "logit") return true;
    if (node.kind === "error" && !get("errors").checked) return false;
    return node.influence <= Number(get("share").value) + 1e-9;
  };
  const draw = () => {
    get("share-text").textContent = `${Math.round(100 * get("share").value)} %`;
    for (const node of nodes) {
      node.shown = visible(node);
      node.mark.classList.toggle("gone", !node.shown || stands(node) !== node);
      node.mark.classList.toggle("chosen", node === chosen);
      node.mark.classList.toggle("pinned", node.pinned);
    }
    for (const made of groups) {
      made.mark.classList.toggle("gone", !get("grouped").checked || !made.nodes.some(node => node.shown));
      made.mark.classList.toggle("chosen", made === chosen);
    }
    for (const link of links) {
      const source = stands(link.source), target = stands(link.target);
      const near = [link.source, link.target, source, target].includes(chosen);
      link.line.setAttribute("d", curve(source, target));
      link.line.classList.toggle("gone", !(link.source.shown && link.target.shown) || source === target);
      link.line.classList.toggle("near", near);
      link.line.classList.toggle("far", chosen !== null && !near);
    }
  };
  const pin = node => { node.pinned = !node.pinned; if (place) changed(); else { panel(); draw(); } };
  const choose = node => { chosen = node === chosen ? null : node; panel(); draw(); };
  const list = (title, found, end, into) => {
    const part = html("div", into);
    html("h3", part, `${title} (${found.length})`);
    const items = html("ol", part, undefined, "ends");
    for (const link of found.slice(0, 40)) {
      const item = html("li", items);
      const button = html("button", item, link[end].name);
      button.type = "button";
      button.addEventListener("click", () => choose(link[end]));
      html("span", item, ` ${link.weight > 0 ? "+" : ""}${link.weight.toPrecision(3)}${link.verified ? "" : " (not verified)"}`, link.weight > 0 ? "adds" : "takes");
    }
    if (found.length > 40) html("p", part, `and ${found.length - 40} weaker ones in the table`, "note");
  };
  const panel = () => {
    const card = get("panel");
    card.replaceChildren();
    if (chosen === null) { html("p", card, "No node is chosen.", "note"); return; }
    const head = html("p", card);
    html("b", head, chosen.name + " ");
    if (chosen.kind === "group") {
      html("p", card, chosen.nodes.map(node => node.name).join(", "), "small");
      const both = html("div", card, undefined, "both");
      list("Inputs", merged(chosen, "source"), "source", both);
      list("Outputs", merged(chosen, "target"), "target", both);
      return;
    }
    const button = html("button", head, chosen.pinned ? "Unpin" : "Pin");
    button.type = "button";
    button.addEventListener("click", () => pin(chosen));
    const titles = [...get("nodes").tHead.rows[0].cells].map(cell => cell.textContent);
    const facts = [...chosen.row.cells].map((cell, n) => [titles[n], cell.textContent]).filter(([, text]) => text);
    const dl = html("dl", card, undefined, "settings");
    for (const [name, text] of facts) { html("dt", dl, name); html("dd", dl, text); }
    const both = html("div", card, undefined, "both");
    list("Inputs", chosen.inputs, "source", both);
    list("Outputs", chosen.outputs, "target", both);
  };
  for (const id of ["share", "errors", "only-pinned", ...(place ? ["grouped"] : [])]) get(id).addEventListener("input", draw);
  get("clear").addEventListener("click", () => { for (const node of nodes) node.pinned = false; if (place) changed(); else { panel(); draw(); } });
  if (place) {
    for (const each of JSON.parse(place.dataset.groups)) {
      const made = group(each.name, each.nodes.map(ref => byRef.get(ref)));
      if (made) made.unseen = each.nodes.filter(ref => byRef.get(ref)?.group !== made);
      else unseen.groups.push(each);
    }
    unseen.pinned = JSON.parse(place.dataset.pinned).filter(ref => !byRef.has(ref));
    get("share").addEventListener("input", later);
    window.addEventListener("beforeunload", event => { if (unsaved) event.preventDefault(); });
    get("group-make").addEventListener("click", () => {
      const members = nodes.filter(node => node.pinned && node.group === null && node.kind !== "logit");
      if (!members.length) { say("Pin the nodes of the group first: choose a node, then Pin.", true); return; }
      const made = group(get("group-name").value || members[0].label || members[0].name, members);
      get("group-name").value = "";
      chosen = made;
      changed();
    });
    get("group-propose").addEventListener("click", () => {
      // Features of one label, or of one latent at several tokens. Groups that people made stay as they are.
      const alike = new Map();
      for (const node of nodes.filter(each => each.kind === "feature" && each.group === null)) {
        const key = node.label || node.ref.split("[")[0];
        alike.set(key, [...(alike.get(key) ?? []), node]);
      }
      const found = [...alike].filter(([, members]) => members.length > 1).map(([name, members]) => group(name, members));
      changed();
      say(found.length ? `${found.length} groups of nodes with one label. Not saved yet.` : "No two nodes have one label.");
    });
    get("group-save")?.addEventListener("click", async () => {
      const drawn = groups.map(made => ({name: made.name, nodes: [...made.nodes.map(node => node.ref), ...made.unseen]}));
      const supernodes = [...drawn, ...unseen.groups];
      const pinned = [...nodes.filter(node => node.pinned).map(node => node.ref), ...unseen.pinned];
      const body = {pinned, supernodes, share: Number(get("share").value), saved: Number(place.dataset.saved)};
      try {
        const answer = await fetch(place.dataset.save, {method: "POST", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}});
        const facts = await answer.json().catch(() => ({}));
        if (!answer.ok) throw new Error([facts.message ?? `The server answered ${answer.status}.`, facts.hint].filter(Boolean).join(" "));
        place.dataset.saved = facts.saved;
        unsaved = false;
        say("Saved in the workspace.");
      } catch (error) { say(error.message, true); }
    });
    listGroups();
  }
  draw();
})();
