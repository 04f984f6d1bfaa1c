// What the script adds to the list of jobs: local times, keys, the selection, new jobs, saved views.

import { onKeys, showHints } from "./keys.js";
import { localTimes } from "./times.js";

// Milliseconds between checks for new jobs.
const CHECK_INTERVAL = 15000;
// Where the browser keeps the saved views: a list of names and queries.
const VIEWS = "helixq.views";

const boxes = [...document.querySelectorAll("[name=job]")];
const search = document.querySelector("[type=search]");

// Keys: the row with the focus is the current one, so that Enter opens its job by itself.
function onKey(event) {
  if (event.key === "/") {
    event.preventDefault();
    search.select();
    return;
  }
  const links = [...document.querySelectorAll(".list tbody [id]")];
  const row = event.target.closest("tbody tr");
  const at = row ? [...row.parentElement.children].indexOf(row) : -1;
  if (event.key === "j") links[Math.min(at + 1, links.length - 1)]?.focus();
  if (event.key === "k") links[Math.max(at - 1, 0)]?.focus();
  if (event.key === "x" && row) row.querySelector("[name=job]").click();
}

// How many are selected. The links that select all do it on the page.
function selection() {
  const place = document.querySelector("[data-count]");
  const show = () => {
    const count = boxes.filter((box) => box.checked).length;
    place.textContent = `${count} selected:`;
  };
  document.addEventListener("change", show);
  // The browser may have kept them when the reader came back.
  window.addEventListener("pageshow", show);
  for (const link of document.querySelectorAll("[data-select-all]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const all = boxes.every((box) => box.checked);
      for (const box of boxes) box.checked = !all;
      show();
    });
  }
}

// Say how many jobs are new. The rows stay where they are.
function news(bar) {
  const title = document.title;
  let timer;
  async function check() {
    if (document.hidden) return;
    try {
      const reply = await fetch(bar.dataset.news, { cache: "no-store" });
      // The newest job was deleted, or the login has ended.
      if (reply.redirected || (reply.status >= 400 && reply.status < 429)) return clearInterval(timer);
      if (!reply.ok) return;
      const { count, more } = await reply.json();
      const text = `${count}${more ? "+" : ""} new ${count === 1 ? "job" : "jobs"}`;
      if (!count || bar.textContent === text) return;
      const link = document.createElement("a");
      link.href = location.pathname + location.search;
      link.textContent = text;
      bar.replaceChildren(link);
      document.title = `(${count}${more ? "+" : ""}) ${title}`;
    } catch { /* the server is away */ }
  }
  timer = setInterval(check, CHECK_INTERVAL);
}

// Named addresses of lists.
function views(place) {
  const read = () => {
    try {
      const stored = JSON.parse(localStorage.getItem(VIEWS));
      return Array.isArray(stored) ? stored.filter((view) => typeof view?.query === "string") : [];
    } catch { return []; }
  };
  const here = new URLSearchParams(location.search);
  for (const name of ["after", "before", "select"]) here.delete(name);
  const [list, form] = place.children;
  const write = (stored) => {
    // Not where the browser keeps nothing.
    try { localStorage.setItem(VIEWS, JSON.stringify(stored)); } catch { return; }
    show();
  };
  function show() {
    const items = read().map(({ name, query }) => {
      const item = document.createElement("span");
      const link = document.createElement("a");
      link.href = `?${query}`;
      link.textContent = name;
      if (query === here.toString()) link.setAttribute("aria-current", "true");
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "remove";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Forget ${name}`);
      remove.addEventListener("click", () => {
        write(read().filter((view) => view.name !== name));
        (form.hidden ? search : form.elements.name).focus();
      });
      item.append(link, " ", remove);
      return item;
    });
    list.replaceChildren(...(items.length ? ["Views: ", ...items] : []));
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = form.elements.name.value.trim();
    if (!name) return;
    write([...read().filter((view) => view.name !== name), { name, query: here.toString() }]);
    form.reset();
  });
  // A list without any filter is there anyway.
  form.hidden = !here.size;
  place.hidden = false;
  show();
}

localTimes(document);
const keys = [["j k", "next and previous job"], ["Enter", "open"], ["x", "select"], ["/", "search"]];
onKeys(keys, "input:not([type=checkbox]), textarea, select", onKey);
if (boxes.length) {
  selection();
  showHints(document);
}
const bar = document.querySelector("[data-news]");
if (bar) news(bar);
views(document.querySelector("[data-views]"));
