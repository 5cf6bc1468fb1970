// The inspector: reads a text once, then shows what is known of the chosen token and follows a feature over the text.
"use strict";

(() => {
  const box = document.getElementById("inspector");
  if (!box) return;
  const at = box.dataset.at;
  const byId = (id) => document.getElementById(id);
  let found = null;
  let patterns = null;
  let chosen = 0;
  let followed = null;

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const say = (id, text, bad = false) => {
    byId(id).textContent = text;
    byId(id).classList.toggle("note", bad);
    byId(id).classList.toggle("bad", bad);
  };
  const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());
  const percent = (value) => `${Math.round(100 * value)} %`;
  const visible = (text) => text.replaceAll("\n", "↵").replace(/^ /, "·") || "∅";
  const shade = (share) => (share > 0.02 ? `s${Math.max(1, Math.min(6, Math.ceil(share * 6)))}` : "");

  const asked = () => {
    const text = byId("text").value;
    const common = { dictionary: byId("dictionary").value, lens: byId("lens").value, layer: Number(byId("layer").value || 0) };
    if (!byId("chat").checked) return { text, ...common };
    const messages = [];
    for (const line of text.split("\n")) {
      const turn = /^\s*(user|assistant)\s*:\s?(.*)$/i.exec(line);
      if (turn) messages.push({ role: turn[1].toLowerCase(), content: turn[2] });
      else if (messages.length) messages.at(-1).content += `\n${line}`;
      else messages.push({ role: "user", content: line });
    }
    return { messages, ...common };
  };
  const ask = async (path) => {
    const answer = await fetch(at + path, { method: "POST", body: JSON.stringify(asked()), headers: { "Content-Type": "application/json" } });
    const facts = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error([facts.message ?? `The server answered ${answer.status}.`, facts.hint].filter(Boolean).join(" "));
    return facts;
  };

  // The tokens, shaded by the followed feature or by the error share
  const shares = () => {
    if (followed !== null) {
      const { values, max } = found.features[followed];
      const most = max || Math.max(...values) || 1;
      return values.map((value) => [value / most, value > 0 ? number(value) : ""]);
    }
    return found.positions.map((each) => (each.error === null ? [0, ""] : [Math.min(1, each.error), ""]));
  };
  const showTokens = () => {
    const all = shares();
    byId("tokens").replaceChildren(...found.tokens.map((token, t) => {
      const [share, text] = all[t];
      const item = element("li", { className: shade(share), id: `token-${t}`, title: `position ${t}` }, visible(token));
      if (text) item.append(element("sub", {}, text));
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", String(t === chosen));
      item.addEventListener("click", () => choose(t));
      return item;
    }));
    byId("tokens").setAttribute("aria-activedescendant", `token-${chosen}`);
    byId("unfollow").hidden = followed === null;
    byId("shown-of").textContent = followed === null ? "Shade: share of the activation that the dictionary does not reconstruct. Choose a token: click, or the arrow keys" : `Shade and number: activation of feature ${followed}, ${found.features[followed].label}`;
  };
  const follow = (unit) => { followed = unit; showTokens(); };
  const showChosen = () => {
    const { features, error } = found.positions[chosen];
    byId("features-title").textContent = `Features at “${visible(found.tokens[chosen])}”, position ${chosen}`;
    byId("error-said").textContent = error === null ? "No dictionary was read." : `The dictionary leaves out ${percent(error)} of the activation's squared length.`;
    byId("features").tBodies[0].replaceChildren(...features.map(({ feature, value }) => {
      const about = found.features[feature];
      const link = element("a", { href: `${at}/feature:${found.dictionary}/${feature}` }, `${found.dictionary}/${feature}`);
      const steer = element("a", { href: `${at}/bench?f=${encodeURIComponent(`${found.dictionary}/${feature}`)}&op=clamp&strength=0.5norm` }, "steer");
      const button = element("button", { type: "button" }, "Follow");
      button.setAttribute("aria-label", `Follow feature ${feature} over the text`);
      button.addEventListener("click", () => follow(String(feature)));
      return element("tr", {}, element("td", { className: "num" }, number(value)), element("td", { className: "num" }, about.max ? percent(value / about.max) : "–"), element("td", {}, link), element("td", {}, about.label || "no label"), element("td", {}, button, " ", steer));
    }));
    const { sites, cells } = found.lens;
    byId("lens-table").tBodies[0].replaceChildren(...sites.map((site, n) => {
      const [first, ...then] = cells[n][chosen];
      return element("tr", {}, element("td", {}, site), element("td", { className: "mono" }, first ? visible(first.token) : ""), element("td", { className: "num" }, first ? first.value.toFixed(2) : ""), element("td", { className: "small mono" }, then.map((each) => `${visible(each.token)} ${each.value.toFixed(2)}`).join("  ")));
    }).reverse());
    byId("grid").querySelectorAll(".at").forEach((each) => each.classList.remove("at"));
    byId("grid").querySelectorAll(`[data-t="${chosen}"]`).forEach((each) => each.classList.add("at"));
    showPatterns();
  };
  const choose = (t) => {
    byId("tokens").children[chosen]?.setAttribute("aria-selected", "false");
    chosen = Math.min(Math.max(t, 0), found.tokens.length - 1);
    byId("tokens").children[chosen].setAttribute("aria-selected", "true");
    byId("tokens").children[chosen].scrollIntoView({ block: "nearest" });
    byId("tokens").setAttribute("aria-activedescendant", `token-${chosen}`);
    showChosen();
  };
  byId("tokens").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !found) return;
    event.preventDefault();
    choose(step === Infinity ? found.tokens.length - 1 : step === -Infinity ? 0 : chosen + step);
  });
  byId("unfollow").addEventListener("click", () => follow(null));

  const showGrid = () => {
    const { sites, cells, shades, kind } = found.lens;
    byId("grid-title").textContent = `The ${kind} lens over the text`;
    const head = element("tr", {}, element("th", {}, "site"), ...found.tokens.map((token, t) => { const cell = element("th", {}, visible(token)); cell.dataset.t = t; return cell; }));
    byId("grid").tHead.replaceChildren(head);
    byId("grid").tBodies[0].replaceChildren(...sites.map((site, n) => element("tr", {}, element("th", {}, site), ...cells[n].map((cell, t) => {
      const made = element("td", { className: shade(shades[n][t]), title: cell.map((each) => `${visible(each.token)} ${each.value.toFixed(3)}`).join("\n") }, cell.length ? `${visible(cell[0].token)} ${cell[0].value.toFixed(2).replace(/^0/, "")}` : "");
      made.dataset.t = t;
      return made;
    }))).reverse());
  };
  const showPatterns = () => {
    if (!patterns) return;
    byId("heads").replaceChildren(...patterns.patterns.map((head, h) => {
      const row = head[chosen];
      const strip = element("ol", { className: "tokens-line" }, ...row.slice(0, chosen + 1).map((share, t) => {
        const item = element("li", { className: shade(share), title: `${percent(share)} to position ${t}` }, visible(found.tokens[t]));
        if (share >= 0.05) item.append(element("sub", {}, String(Math.round(100 * share))));
        item.addEventListener("click", () => choose(t));
        return item;
      }));
      return element("div", {}, element("b", {}, `${patterns.layer}.${h}`), strip);
    }));
  };

  const read = async () => {
    byId("read").disabled = true;
    say("said", "Reading…");
    try {
      found = await ask("/inspect/read");
      patterns = null;
      followed = null;
      byId("result").hidden = false;
      byId("heads").replaceChildren();
      byId("layer").replaceChildren(...Array.from({ length: found.layers }, (_, n) => element("option", { value: n }, String(n))));
      chosen = found.tokens.length - 1;
      showTokens();
      showGrid();
      choose(chosen);
      say("said", "");
      byId("tokens").focus({ preventScroll: true });
    } catch (error) { say("said", error.message, true); }
    byId("read").disabled = false;
  };
  byId("read").addEventListener("click", read);
  byId("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) read(); });
  byId("patterns").addEventListener("click", async () => {
    say("patterns-said", "Reading…");
    try { patterns = await ask("/inspect/patterns"); showPatterns(); say("patterns-said", ""); } catch (error) { say("patterns-said", error.message, true); }
  });
  if (byId("text").value) read();
})();
