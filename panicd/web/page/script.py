"""The pages' one script. It renews them, filters as you type, and copies commands.

It fetches the page that is shown and replaces the parts marked ``data-live``. It parses the new
page without running it, and the same policy applies. Everything else is HTML.
"""

from typing import Final

SCRIPT: Final = """
"use strict";
(() => {
  const EVERY = 10000, TYPED = 150;
  const bar = document.getElementById("renewal"), pause = document.getElementById("pause");
  const told = document.getElementById("trouble"), form = document.getElementById("filter");
  let paused = false, newest = 0, typed = 0;
  const within = (old, key) => [...old.querySelectorAll("a[href], summary, button")].find(
    each => key && (each.getAttribute("href") || each.textContent) === key);
  function replace(old, fresh) {
    if (old.innerHTML === fresh.innerHTML) return;
    const at = old.contains(document.activeElement) ? document.activeElement : null;
    const key = at && (at.getAttribute("href") || at.textContent);
    const open = [...old.querySelectorAll("details[open] > summary")].map(s => s.textContent);
    old.replaceChildren(...fresh.childNodes);
    for (const summary of old.querySelectorAll("details > summary"))
      if (open.includes(summary.textContent)) summary.parentElement.open = true;
    if (at) within(old, key)?.focus({preventScroll: true});
    show(old);
  }
  async function renew() {
    const mine = ++newest;
    try {
      const answer = await fetch(location.href, {cache: "no-store", redirect: "error"});
      if (!answer.ok) throw new Error("status " + answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (mine !== newest) return;
      for (const old of document.querySelectorAll("[data-live]")) {
        const now = fresh.getElementById(old.id);
        if (now) replace(old, now);
      }
      told.textContent = "";
    } catch (error) {
      if (mine === newest) told.textContent = "This page is old: panicd does not answer.";
    }
  }
  function show(part) {
    for (const button of part.querySelectorAll("button[data-copy]")) button.hidden = false;
  }
  document.addEventListener("click", async event => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch (error) {
      getSelection().selectAllChildren(code);
    }
  });
  show(document);
  if (form) {
    const search = () => {
      const asked = new URLSearchParams(new FormData(form)).toString();
      history.replaceState(null, "", location.pathname + "?" + asked);
      renew();
    };
    form.addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(search, TYPED);
    });
    form.addEventListener("submit", event => { event.preventDefault(); search(); });
    form.querySelector("button").hidden = true;
  }
  if (!document.querySelector("[data-live]")) return;
  bar.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (!paused) renew();
  });
  setInterval(() => {
    if (!paused && !document.hidden && getSelection().isCollapsed) renew();
  }, EVERY);
})();
"""
