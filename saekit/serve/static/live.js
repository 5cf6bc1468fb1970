// Sends forms with `data-live` without leaving the page, and shows the part of the page that comes back. Until then it says what
// the model does: it is loaded when it is first needed.
"use strict";

(() => {
  const state = async (address) => {
    try {
      const { state, waiting } = await (await fetch(address)).json();
      if (state === "loading" || state === "not loaded") return "loading the model";
      return waiting ? `waiting: ${waiting} before this` : "running";
    } catch {
      return "waiting";
    }
  };

  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("form[data-live]");
    if (!form) return;
    event.preventDefault();
    const box = document.getElementById(form.dataset.live);
    const button = form.querySelector("button");
    const address = form.closest("[data-model]").dataset.model;
    const note = document.createElement("p");
    note.className = "quiet working";
    note.textContent = "waiting";
    box.replaceChildren(note);
    button.disabled = true;
    const look = setInterval(async () => { note.textContent = await state(address); }, 700);
    try {
      const body = new URLSearchParams(new FormData(form));
      const answer = await fetch(form.action, { method: "POST", body, headers: { accept: "text/html", "x-part": "yes" } });
      box.innerHTML = await answer.text(); // made by the server's templates, which escape every text
    } catch {
      note.className = "note bad";
      note.textContent = "The server does not answer.";
    } finally {
      clearInterval(look);
      button.disabled = false;
    }
  });
})();
