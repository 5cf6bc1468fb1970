// Keyboard: `/` goes to the search box, `j` and `k` go through the rows of a page, Enter opens the chosen one.
"use strict";

(() => {
  const rows = () => [...document.querySelectorAll("[data-row]")];

  const typing = (element) => element.closest("input, textarea, select, [contenteditable]") !== null;

  const choose = (step) => {
    const all = rows();
    if (!all.length) return;
    const now = all.findIndex((row) => row.classList.contains("chosen"));
    const next = Math.min(Math.max(now + step, 0), all.length - 1);
    if (now >= 0) all[now].classList.remove("chosen");
    all[next].classList.add("chosen");
    all[next].scrollIntoView({ block: "nearest" });
    all[next].querySelector("a")?.focus({ preventScroll: true });
  };

  const follow = (relation) => document.querySelector(`a[rel="${relation}"]`)?.click();

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "Escape" && typing(event.target)) event.target.blur();
    if (typing(event.target)) return;
    const search = document.getElementById("search");
    if (event.key === "/" && search) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "j") {
      if (rows().length) choose(1);
      else follow("next");
    } else if (event.key === "k") {
      if (rows().length) choose(-1);
      else follow("prev");
    } else if (event.key === "]") follow("next");
    else if (event.key === "[") follow("prev");
  });

  // A control that says `data-submits` sends its form when it changes, so that no button is needed.
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
  });

  // A control that says `data-copies` copies the text of the element with that id.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copies]");
    if (!button) return;
    const said = button.textContent;
    try {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy";
    }
    setTimeout(() => { button.textContent = said; }, 1500);
  });
})();
