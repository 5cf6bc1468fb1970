// Shows how far a running command is, and loads the page again when it has ended.
"use strict";

(() => {
  const box = document.querySelector("[data-jobs]");
  const list = document.getElementById("job-list");
  if (!box) return;
  let ran = false;
  let shown = "";

  const line = (...parts) => {
    const element = document.createElement("p");
    element.append(...parts);
    return element;
  };

  const bar = (each) => {
    const progress = document.createElement("progress");
    progress.max = each.of || 1;
    progress.value = each.done || 0;
    const label = document.createElement("label");
    label.append(`${each.what} `, progress);
    const numbers = document.createElement("span");
    numbers.className = "num";
    numbers.textContent = ` ${(each.done || 0).toLocaleString("en")}${each.of ? ` of ${each.of.toLocaleString("en")}` : ""} tokens`;
    return line(label, numbers);
  };

  const look = async () => {
    if (document.hidden) return;
    const answer = await fetch(box.dataset.jobs);
    if (!answer.ok) return;
    const text = await answer.text();
    const { job, progress } = JSON.parse(text);
    const runs = job?.state === "running";
    if (ran && !runs) location.reload();
    ran = runs;
    if (text === shown || (!runs && !shown)) return;
    shown = text;
    box.hidden = false;
    const state = document.createElement("span");
    state.className = runs ? "pill good" : "pill bad";
    state.textContent = job?.state ?? "";
    const command = document.createElement("code");
    command.textContent = job?.command ?? "";
    list.replaceChildren(...(job ? [line(state, " ", command)] : []), ...progress.map(bar));
  };

  setInterval(() => look().catch(() => {}), 2000);
  look().catch(() => {});
})();
