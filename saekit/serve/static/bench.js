// The steering bench: reads the form, streams the three arms, shows their measures, sweeps, keeps and shares.
"use strict";

(() => {
  const box = document.getElementById("bench");
  if (!box) return;
  const at = box.dataset.at;
  const view = JSON.parse(box.dataset.view);
  const byId = (id) => document.getElementById(id);
  const ARMS = view.arms;
  const UNITS = ["norm", "max", "q", "raw", "mean"];
  let setup = view.setup;
  let objects = view.objects;
  let result = view.result;
  let chats = Object.fromEntries(ARMS.map((arm) => [arm, []]));
  let running = null;

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

  // Requests. An error of the server is a sentence and what to do about it.
  const failed = async (answer) => {
    let facts = {};
    try { facts = await answer.json(); } catch { /* the guard answers with plain text */ }
    const said = facts.error?.message ?? facts.message ?? `The server answered ${answer.status}.`;
    return new Error([said, facts.hint].filter(Boolean).join(" "));
  };
  const ask = async (path, body) => {
    const settings = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    const answer = await fetch(at + path, settings);
    if (!answer.ok) throw await failed(answer);
    return answer.json();
  };

  // What is steered with
  const split = (text) => {
    const found = /^(q)?([+-]?[\d.]+(?:e[+-]?\d+)?)(norm|max|q|raw|mean)?$/i.exec(text ?? "");
    return found ? [found[2], found[1] ?? found[3] ?? ""] : ["", ""];
  };
  const joined = (value, unit) => (value === "" ? "" : unit === "q" ? `q${value}` : value + unit);
  const takesStrength = (op) => op === "" || op in view.default_strengths;

  const chipRow = (chip, about, place) => {
    const name = about?.target ?? chip.target;
    const who = element("div", { className: "who" }, element("b", {}, name), " ", element("span", { className: "pill" }, about?.kind ?? ""), " ", about?.label ?? "");
    if (about?.kind === "feature") {
      const score = about.output_score === null ? "output score not measured" : `output score ${about.output_score.toFixed(2)}`;
      const promoted = about.promoted.length ? `; promotes ${about.promoted.slice(0, 5).map((each) => JSON.stringify(each)).join(" ")}` : "";
      who.append(element("div", { className: "small quiet" }, `max ${number(about.max)}; ${score}${promoted}`));
    }
    if (about?.kind === "feature") {
      const [where, unit] = [name.slice(0, name.lastIndexOf("/")), name.slice(name.lastIndexOf("/") + 1)];
      who.querySelector("b").replaceChildren(element("a", { href: `${at.replace(/\/bench$/, "")}/feature:${where}/${unit}` }, name));
    }
    const [value, unit] = split(chip.strength);
    const op = element("select", {}, ...["", ...view.operations].map((each) => element("option", { value: each, selected: each === chip.op }, each || "default")));
    const strength = element("input", { type: "number", step: "any", value, placeholder: about?.kind === "feature" ? "0.5" : "" });
    const units = element("select", {}, ...["", ...UNITS].map((each) => element("option", { value: each, selected: each === unit }, { "": "unit", q: "quantile" }[each] ?? each)));
    const positions = element("input", { type: "text", value: chip.positions, placeholder: "default" });
    positions.setAttribute("list", "positions");
    const change = () => {
      setup.chips[place] = { target: chip.target, op: op.value, strength: takesStrength(op.value) ? joined(strength.value, strength.value === "" ? "" : units.value) : "", positions: positions.value.trim() };
      strength.disabled = units.disabled = !takesStrength(op.value);
    };
    for (const each of [op, strength, units, positions]) each.addEventListener("input", change);
    strength.disabled = units.disabled = !takesStrength(chip.op);
    const remove = element("button", { type: "button", title: `Remove ${name}` }, "Remove");
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => { setup.chips.splice(place, 1); objects.splice(place, 1); showChips(); byId("add").focus(); });
    const named = (text, ...inside) => element("label", {}, text, ...inside);
    return element("li", {}, who, named("Operation", op), named("Strength", strength), named("Unit", units), named("Positions", positions), remove);
  };
  const showChips = () => {
    byId("chips").replaceChildren(...setup.chips.map((chip, place) => chipRow(chip, objects[place], place)));
    byId("no-chips").hidden = setup.chips.length > 0;
  };
  const add = (about) => {
    const strength = { feature: "0.5norm", vector: "0.5norm", neuron: "2max", head: "0" }[about.kind] ?? "";
    const op = { feature: "clamp", neuron: "clamp", head: "scale" }[about.kind] ?? "";
    setup.chips.push({ target: about.target, op, strength, positions: "" });
    objects.push(about);
    if (about.promoted.length && !byId("words").value) {
      byId("words").value = about.promoted.map((each) => each.trim()).filter((each) => /^\p{L}{3,}$/u.test(each)).slice(0, 5).join(", ");
    }
    byId("add").value = "";
    byId("found").replaceChildren();
    say("add-said", "");
    showChips();
  };
  let asked = 0;
  let typing = 0;
  const find = async (addFirst) => {
    clearTimeout(typing);
    const text = byId("add").value.trim();
    const mine = (asked += 1);
    if (!text) return byId("found").replaceChildren();
    try {
      const { found } = await ask(`/find.json?q=${encodeURIComponent(text)}`);
      if (mine !== asked) return undefined;
      if (addFirst && found.length) return add(found[0]);
      byId("found").replaceChildren(...found.map((about) => {
        const button = element("button", { type: "button" }, element("b", {}, about.target), " ", element("span", { className: "pill" }, about.kind), " ", about.label);
        button.addEventListener("click", () => add(about));
        return element("li", {}, button);
      }));
      say("add-said", found.length ? "" : "Nothing of that name was found.");
    } catch (error) { say("add-said", error.message, true); }
    return undefined;
  };
  byId("add").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => find(false), 250); });
  byId("add").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); find(true); } });
  byId("add-button").addEventListener("click", () => find(true));
  byId("setup").addEventListener("submit", (event) => event.preventDefault());

  // The form
  const mode = () => document.querySelector("input[name=mode]:checked").value;
  const read = () => {
    setup.mode = mode();
    for (const key of ["max_tokens", "seed"]) setup[key] = Math.trunc(byId(key).valueAsNumber);
    for (const key of ["temperature", "top_p"]) setup[key] = byId(key).valueAsNumber;
    if (setup.mode === "text") setup.prompt = byId("prompt").value;
    setup.words = byId("words").value;
    return setup;
  };
  const showMode = () => {
    const chat = mode() === "chat";
    byId("new-chat").hidden = !chat;
    byId("prompt-title").textContent = chat ? "Message" : "Prompt";
    byId("run").textContent = chat ? "Send" : "Generate";
    showChats();
  };
  const write = () => {
    for (const key of ["max_tokens", "temperature", "top_p", "seed", "words"]) byId(key).value = setup[key];
    document.querySelector(`input[name=mode][value=${setup.mode === "chat" ? "chat" : "text"}]`).checked = true;
    byId("prompt").value = setup.mode === "chat" && Object.keys(setup.chats ?? {}).length ? "" : setup.prompt;
    for (const arm of ARMS) chats[arm] = (setup.chats?.[arm] ?? []).map((each) => ({ ...each }));
    showChips();
    showMode();
  };
  document.querySelectorAll("input[name=mode]").forEach((each) => each.addEventListener("change", showMode));

  // The arms
  const arm = (name) => document.querySelector(`.arm[data-arm="${name}"]`);
  const said = (name) => arm(name).querySelector(".said");
  const showChats = () => {
    for (const name of ARMS) {
      const shown = mode() === "chat" ? chats[name] : [];
      arm(name).querySelector(".chat").replaceChildren(...shown.map((each) => element("p", { className: each.role }, each.content)));
    }
  };
  const level = (difference) => Math.min(4, Math.ceil(Math.abs(difference) / 0.75));
  const showText = (name) => {
    const one = result?.arms?.[name];
    if (!one) return;
    const colour = byId("differences").checked && one.tokens.length > 0;
    byId("legend").hidden = !colour;
    if (!colour) { said(name).textContent = one.text; return; }
    said(name).replaceChildren(...one.tokens.flatMap((each) => {
      const text = /^\s*$/.test(each.token) ? each.token.replace("\n", "↵\n") : each.token;
      if (each.difference === null || Math.abs(each.difference) < 0.05) return [text];
      const sign = each.difference > 0 ? "up" : "down";
      const span = element("span", { className: sign + level(each.difference), title: `log-probability ${number(each.base)} without, ${number(each.steered)} with; KL here ${number(each.kl)}` }, text);
      const shown = Math.abs(each.difference) >= 1 ? [element("sub", {}, (each.difference > 0 ? "+" : "−") + Math.abs(each.difference).toFixed(1))] : [];
      return [span, ...shown];
    }));
  };
  const showResult = () => {
    for (const name of ARMS) {
      const one = result?.arms?.[name];
      for (const cell of arm(name).querySelectorAll("[data-measure]")) cell.textContent = number(one?.[cell.dataset.measure] ?? null);
      if (one) showText(name);
    }
    const notes = [...(result?.warnings ?? [])];
    for (const each of result?.fired ?? []) if (each.steered) notes.push(`${each.feature} fires by itself on ${each.fired} of ${each.steered} steered tokens.`);
    byId("remarks").replaceChildren(...notes.map((each) => element("p", { className: "note" }, each)));
    byId("command").textContent = result?.command ?? "";
    byId("snippet").textContent = result?.snippet ?? "";
  };
  byId("differences").addEventListener("change", () => ARMS.forEach(showText));

  // Generating
  const events = async function* (answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part.slice("data: ".length));
    }
  };
  const showState = async () => {
    try {
      const { state, waiting } = await ask("/model.json");
      byId("model-state").textContent = `model ${state}${waiting ? `, ${waiting} waiting` : ""}`;
      byId("model-state").classList.toggle("good", state === "ready");
    } catch { byId("model-state").textContent = "no answer from the server"; }
  };
  const busy = (on) => {
    byId("run").disabled = on;
    byId("stop").disabled = !on;
    ARMS.forEach((name) => said(name).classList.toggle("busy", on));
  };
  const sent = () => {
    if (setup.mode === "text") return { ...setup, chats: {} };
    const content = byId("prompt").value.trim();
    if (content) ARMS.forEach((name) => chats[name].push({ role: "user", content }));
    byId("prompt").value = "";
    setup.chats = Object.fromEntries(ARMS.map((name) => [name, chats[name].map((each) => ({ ...each }))]));
    showChats();
    return setup;
  };
  const run = async () => {
    if (running || !byId("setup").reportValidity()) return;
    read();
    if (!setup.chips.length) { say("said", "Add something to steer with.", true); byId("add").focus(); return; }
    running = new AbortController();
    const body = sent();
    result = null;
    showResult();
    ARMS.forEach((name) => { said(name).textContent = ""; });
    busy(true);
    say("said", "Waiting for the model…");
    const watch = setInterval(showState, 700);
    let whole = false;
    try {
      const answer = await fetch(`${at}/run`, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal: running.signal });
      if (!answer.ok) throw await failed(answer);
      for await (const event of events(answer)) {
        if (event.event === "begun") say("said", "Generating…");
        else if (event.event === "text") said(event.arm).append(event.text);
        else if (event.event === "end") said(event.arm).classList.remove("busy");
        else if (event.event === "result") { result = event.result; whole = true; }
        else if (event.event === "error") throw new Error([event.message, event.hint].filter(Boolean).join(" "));
        if (event.event === "end" && ARMS.every((name) => !said(name).classList.contains("busy"))) say("said", "Measuring…");
      }
      say("said", whole ? "" : "The server stopped.", !whole);
    } catch (error) {
      say("said", error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    } finally {
      clearInterval(watch);
      running = null;
      busy(false);
      showState();
    }
    if (setup.mode === "chat") settleChat();
    showResult();
    byId("prompt").focus();
  };
  // The answers become messages; a message without an answer goes back to the box.
  const settleChat = () => {
    if (result) for (const name of ARMS) chats[name].push({ role: "assistant", content: result.arms[name].text.trim() || "…" });
    else {
      const last = chats[ARMS[0]].at(-1);
      if (last?.role === "user") { ARMS.forEach((name) => chats[name].pop()); byId("prompt").value ||= last.content; }
    }
  };
  byId("run").addEventListener("click", run);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("prompt").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });
  byId("new-chat").addEventListener("click", () => { ARMS.forEach((name) => { chats[name] = []; said(name).textContent = ""; }); result = null; showChats(); showResult(); });

  // Sweep
  const charts = (points, baseline) => {
    if (!window.saekitCharts) return;
    const draw = (id, data, x, y) => {
      byId(id).dataset.chart = JSON.stringify({ data, layout: { xaxis: { title: { text: x } }, yaxis: { title: { text: y }, tickformat: ".1%", rangemode: "tozero" } } });
      window.saekitCharts.draw(byId(id));
    };
    const front = points.filter((each) => each.frontier).sort((a, b) => a.kl - b.kl);
    draw("frontier", [
      { type: "scatter", mode: "lines", name: "best at its cost", x: front.map((each) => each.kl), y: front.map((each) => each.rate), line: { color: "--one", width: 2 } },
      { type: "scatter", mode: "markers+text", name: "strength ×", x: points.map((each) => each.kl), y: points.map((each) => each.rate), text: points.map((each) => String(each.factor)), textposition: "top center", marker: { color: "--one", size: 9, symbol: points.map((each) => (each.frontier ? "circle" : "circle-open")) } },
    ], "KL on neutral text, nats a token", "target words");
    draw("dose", [
      { type: "scatter", mode: "lines+markers", name: "steered", x: points.map((each) => each.factor), y: points.map((each) => each.rate), line: { color: "--one", width: 2 }, marker: { symbol: "circle", size: 7 } },
      { type: "scatter", mode: "lines+markers", name: "random", x: points.map((each) => each.factor), y: points.map((each) => each.random_rate), line: { color: "--two", dash: "dash" }, marker: { symbol: "x", size: 7 } },
      { type: "scatter", mode: "lines", name: "unsteered", x: [0, points.at(-1).factor], y: [baseline, baseline], line: { color: "--three", dash: "dot" } },
    ], "strength ×", "target words");
  };
  byId("sweep").addEventListener("click", async () => {
    read();
    byId("sweep").disabled = true;
    say("sweep-said", "Sampling at several strengths…");
    const watch = setInterval(showState, 700);
    try {
      const body = setup.mode === "chat" ? { ...setup, mode: "text" } : { ...setup, chats: {} };
      const found = await ask("/sweep", body);
      const percent = (value) => `${(100 * value).toFixed(1)} %`;
      byId("sweep-result").hidden = false;
      byId("sweep-table").caption.textContent = `Share of the words ${found.words.join(", ")} in ${found.samples} samples; ${percent(found.baseline.rate)} without steering. KL on ${found.n_tokens.toLocaleString("en")} tokens of the corpus. Perplexity relative to unsteered text.`;
      byId("sweep-table").tBodies[0].replaceChildren(...found.points.map((each) => element("tr", {}, ...[
        [each.factor, "num"], [percent(each.rate), "num"], [percent(each.random_rate), "num"], [number(each.kl), "num"], [number(each.perplexity), "num"], [each.frontier ? "✓" : "", ""], [each.sample.slice(0, 160), "small"],
      ].map(([text, kind]) => element("td", { className: kind }, String(text))))));
      charts(found.points, found.baseline.rate);
      say("sweep-said", "");
    } catch (error) { say("sweep-said", error.message, true); }
    clearInterval(watch);
    byId("sweep").disabled = false;
    showState();
  });

  // Keep and share
  const file = () => ({ format: "saekit-bench", version: 1, setup: { ...read(), chats: setup.mode === "chat" ? setup.chats : {} }, result });
  const keep = (id, path, body, said) => byId(id)?.addEventListener("click", async () => {
    const name = byId("name").value.trim();
    if (!name) { say("keep-said", "Write a name first.", true); byId("name").focus(); return; }
    try { said(await ask(`${path}/${encodeURIComponent(name)}`, body()), name); } catch (error) { say("keep-said", error.message, true); }
  });
  keep("save", "/runs", file, (answer, name) => {
    byId("runs").replaceChildren(...answer.runs.map((each) => element("li", {}, element("a", { href: `?run=${encodeURIComponent(each)}` }, each))));
    say("keep-said", `Saved as ${name}.`);
    history.replaceState(null, "", `?run=${encodeURIComponent(name)}`);
  });
  keep("save-model", "/models", () => ({ ...read(), chats: {} }), (answer) => say("keep-said", `Programs find it as ${answer.model} at /v1/models.`));
  byId("download").addEventListener("click", () => {
    const link = element("a", { href: URL.createObjectURL(new Blob([`${JSON.stringify(file(), null, 1)}\n`], { type: "application/json" })), download: `${byId("name")?.value.trim() || "bench"}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  byId("file").addEventListener("change", async () => {
    const [chosen] = byId("file").files;
    if (!chosen) return;
    try {
      const opened = await ask("/open", JSON.parse(await chosen.text()));
      ({ setup, result, objects } = opened);
      write();
      showResult();
      say("keep-said", `Opened ${chosen.name}.`);
    } catch (error) { say("keep-said", error instanceof SyntaxError ? "The file is not JSON." : error.message, true); }
    byId("file").value = "";
  });

  write();
  showResult();
  showState();
})();
