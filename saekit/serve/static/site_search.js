// The search of a copy in files: over the labels and words of all features that have a page, which `site_index.js` holds.
"use strict";

(() => {
  const { dictionaries, rows } = window.saekitIndex;
  const box = document.getElementById("search");
  const list = document.getElementById("hits");
  const said = document.getElementById("found-said");
  const most = 200;
  const fields = [["label", 4], ["fires on", 2], ["promotes", 1]];
  // One row: dictionary, number, label, kind, density, words, promoted tokens
  const prepared = rows.map((row) => ({ row, texts: [row[2], row[5], row[6]].map((text) => text.toLowerCase()) }));

  const matched = ({ row, texts }, words) => {
    let score = 0;
    const why = new Set();
    for (const word of words) {
      const where = fields.findIndex((_, number) => texts[number].includes(word));
      if (where < 0) return null;
      score += fields[where][1];
      why.add(fields[where][0]);
    }
    return { row, score, why: [...why].join(", ") };
  };

  const element = (name, kind, text) => {
    const made = document.createElement(name);
    made.className = kind;
    made.textContent = text;
    return made;
  };

  const item = ({ row: [dictionary, number, label, kind, density, fires, promotes], score, why }) => {
    const { address, folder } = dictionaries[dictionary];
    const made = element("li", "", "");
    made.dataset.row = "";
    const link = element("a", "", label || "no label");
    link.href = `feature/${encodeURIComponent(folder)}/${number}.html`;
    const text = document.createElement("div");
    const facts = `${address}/${number} · ${kind} · ${(100 * density).toPrecision(3)} % of tokens`;
    text.append(link, " ", element("span", "quiet small", facts));
    text.append(element("div", "small", `found in: ${why} · fires on ${fires || "nothing"} · promotes ${promotes || "nothing"}`));
    made.append(element("span", "", ""), element("span", "num", String(score)), element("span", "spark", ""), text);
    return made;
  };

  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = words.length ? prepared.map((each) => matched(each, words)).filter(Boolean) : [];
    found.sort((a, b) => b.score - a.score || b.row[4] - a.row[4]);
    list.replaceChildren(...found.slice(0, most).map(item));
    const shown = found.length > most ? `, the first ${most} are shown` : "";
    said.textContent = words.length ? `${found.length} found among ${rows.length}${shown}` : `${rows.length} features`;
  };

  box.value = new URLSearchParams(location.search).get("q") ?? "";
  box.addEventListener("input", search);
  box.form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
  search();
})();
