// What the script adds to the pages: local times, live texts, actions that stay on the page, keys.

import { onKeys, showHints } from "./keys.js";
import { localTimes } from "./times.js";

// Milliseconds before a failed request is retried.
const RETRY_DELAY = 2000;
// Milliseconds after the last key before the tokens of a question are counted.
const COUNT_DELAY = 500;
// Milliseconds between checks of a job: where it stands, and whether it ended without an event.
const CHECK_INTERVAL = 15000;
// Milliseconds without text after which the page says so.
const SILENCE = 5000;
// The maximum number of bytes of a form. The server would refuse a larger one, and the text would be lost.
const MAX_FORM = 1 << 20;

const pause = () => new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));

function askForm(form) {
  form.querySelector("[data-submit-hint]").hidden = false;
  const { question } = form.elements;
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  question.addEventListener("input", () => question.setCustomValidity(""));
  // A double click submits once.
  let sent = false;
  form.addEventListener("submit", (event) => {
    const body = new URLSearchParams({ question: question.value.replaceAll("\n", "\r\n") });
    if (body.toString().length > MAX_FORM) {
      event.preventDefault();
      question.setCustomValidity("The question is too long. Shorten the question.");
      question.reportValidity();
      return;
    }
    if (sent) event.preventDefault();
    sent = true;
    setTimeout(() => { sent = false; }, RETRY_DELAY);
  });
}

// Say while the user types how many tokens the question has, and how many it may have.
function countTokens(form) {
  const shown = form.querySelector("[data-tokens]");
  const { question, instructions } = form.elements;
  let timer, request;
  const count = async () => {
    request?.abort();
    request = new AbortController();
    try {
      if (!question.value.trim()) throw new Error("nothing to count");
      const reply = await fetch(form.dataset.count, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ input: question.value, instructions: instructions.value || null }),
        signal: request.signal,
      });
      if (!reply.ok) throw new Error(reply.status);
      const { input_tokens: tokens, max_input_tokens: most } = await reply.json();
      shown.textContent = `${tokens.toLocaleString()} of ${most.toLocaleString()} tokens, with the prompt around it`;
      if (tokens > most) shown.textContent += ": too long";
      shown.classList.toggle("error", tokens > most);
      shown.hidden = false;
    } catch (error) { if (error.name !== "AbortError") shown.hidden = true; }
  };
  const later = () => { clearTimeout(timer); timer = setTimeout(count, COUNT_DELAY); };
  for (const field of [question, instructions]) field.addEventListener("input", later);
  if (question.value) count();
}

function notify(text) {
  const notice = document.querySelector("[data-notice]");
  if (notice.textContent !== text) notice.textContent = text;
}

// The same marks as web/pages/marks.py makes: characters that would reorder a text, or cannot be seen.
const DECEPTIVE = /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufff9-\ufffb]/;

function append(element, text) {
  for (const part of text.split(new RegExp(`(${DECEPTIVE.source})`))) {
    if (!DECEPTIVE.test(part)) { element.append(part); continue; }
    const mark = document.createElement("bdi");
    mark.className = "mark";
    mark.dataset.name = `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    mark.append(part);
    element.append(mark);
  }
}

// Update the marked parts from the page as the server renders it now. All else stays: the selection, the
// focus, what was opened, and the live region that is read aloud.
function update(page, more) {
  const fresh = [...page.querySelectorAll("[data-live]")];
  // The job restarted with another model, and has other texts.
  if (fresh.some(({ id }) => !document.getElementById(id))) return location.reload();
  prepare(page);
  const focused = document.activeElement;
  const place = focused.matches("[data-show]") && focused.textContent;
  for (const part of fresh) {
    const shown = document.getElementById(part.id);
    // The text that was streamed stays until the server has stored it.
    if (more && part.matches(".text:empty")) continue;
    shown.className = part.className;
    for (const { id } of shown.querySelectorAll("details[id][open]")) {
      const same = page.getElementById(id);
      if (same) same.open = true;
    }
    if (shown.innerHTML !== part.innerHTML) shown.replaceChildren(...part.childNodes);
  }
  document.title = page.title;
  notify("");
  if (focused.isConnected) return;
  // What had the focus may be gone. The keyboard continues from the same place.
  const links = [...document.querySelectorAll("[data-show]")];
  const next = links.find(({ textContent }) => textContent === place);
  (next ?? document.querySelector("main")).focus({ preventScroll: true });
}

// What differs from a page without a script.
function prepare(root) {
  localTimes(root);
  showHints(root);
  for (const element of root.querySelectorAll("[data-copy]")) element.hidden = false;
}

const parsed = async (reply) => new DOMParser().parseFromString(await reply.text(), "text/html");
const isLive = (page) => page.querySelector("[data-response]") !== null;

// Show the job's page with other options, without leaving it.
async function show(url) {
  try {
    const reply = await fetch(url, { cache: "no-store" });
    const page = await parsed(reply);
    if (!reply.ok || !page.querySelector("[data-live]")) throw new Error(reply.status);
    history.replaceState(null, "", url);
    update(page, isLive(page));
  } catch { location.href = url; }
}

// Send a form of the job's page, and show what came of it. Another job's page is gone to.
async function send(form) {
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const reply = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const page = await parsed(reply);
    if (!reply.ok) return notify(page.querySelector("main p").textContent);
    const there = new URL(reply.url);
    if (there.pathname !== location.pathname) { location.href = reply.url; return; }
    // A job that goes on is followed from its start.
    if (isLive(page) && !isLive(document)) return location.reload();
    if (form.closest("#review")) document.getElementById("review").open = false;
    if (location.search) return await show(location.pathname + location.search);
    update(page, isLive(page));
  } catch { notify("The server does not respond. Try again."); } finally { button.disabled = false; }
}

function jobPage() {
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-show]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      await show(link.href);
    }
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      // The whole text of the last stage that wrote one, exactly as it is.
      const texts = [...document.querySelectorAll(".stage.regenerator .text")].map(exact);
      try {
        await navigator.clipboard.writeText(texts.at(-1));
        copy.textContent = "Copied";
      } catch { copy.textContent = "Not allowed"; }
    }
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form[data-here]")) return;
    event.preventDefault();
    send(event.target);
  });
  onKeys([["d", "show the changes in another way"]], "input:not([type=radio]), textarea, select", ({ key }) => {
    if (key === "d") show(document.querySelector("[data-next-diff]").href);
  });
  // What is folded is printed too.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], .menu, #review)")];
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
}

// The text of a stage without the words that were removed.
function exact(element) {
  const copy = element.cloneNode(true);
  for (const removed of copy.querySelectorAll("del")) removed.remove();
  return copy.textContent;
}

// Show how the job ended, as soon as the server responds.
async function refresh() {
  for (;;) {
    try {
      const reply = await fetch(location.href, { cache: "no-store" });
      if (reply.status < 500) {
        const page = await parsed(reply);
        // The job may have been deleted: the browser shows what there is instead.
        if (!page.querySelector("[data-live]")) return location.reload();
        // The text of a cancelled stage arrives a moment after the cancellation.
        const more = isLive(page);
        update(page, more);
        if (!more) return document.querySelector("article").removeAttribute("data-response");
        await pause();
        continue;
      }
    } catch { /* the server is away */ }
    notify("Connection lost. Reconnecting…");
    await pause();
  }
}

// Show texts while they are generated, until the job has ended.
function follow(address, news) {
  let events;
  let ended = false;
  // A stage may have several texts, one after another: an id with the number of an attempt is that of a later one.
  const place = (id) => {
    const [kind, role, round, job, run, attempt] = id.split("_");
    return attempt ? [kind, role, round, job, ...(run === "1" ? [] : [run])].join("_") : id;
  };
  const part = (id, name) => document.getElementById(`${name}-${place(id)}`);
  // The places of the texts that the stream has made whole.
  const written = new Set();
  // The running stage: when its text came last, when each character did, and since when the stream is read.
  let heardAt = performance.now();
  let connectedAt = 0;
  let characters = [];
  let silent = false;
  let checking = false;
  let chosen = false;

  // Elapsed time and speed, each second; and that nothing comes.
  function tick() {
    const place = document.querySelector("[data-started]");
    if (!place) return;
    const now = performance.now();
    const seconds = Math.max(0, (Date.now() - Date.parse(place.dataset.started)) / 1000);
    const parts = [`running for ${Math.floor(seconds)} s`];
    // A piece of text may have several tokens.
    if (characters.length) parts.push(`${characters.length} characters`);
    // Not those that came at once when the stream was opened.
    const recent = characters.filter((time) => time > Math.max(now - SILENCE, connectedAt + 1000));
    if (recent.length > 1) parts.push(`${Math.round(recent.length / SILENCE * 1000)} characters/s`);
    const since = now - Math.max(heardAt, now - seconds * 1000);
    if (since > SILENCE) parts.push(`no text for ${Math.floor(since / 1000)} s`);
    place.textContent = parts.join(" · ");
    // The server knows whether the worker still responds, and when the stage will be tried again.
    if (since > SILENCE && !silent) check();
    silent = since > SILENCE;
  }

  function end() {
    if (ended) return;
    ended = true;
    events?.close();
    clearInterval(timer);
    clearInterval(clock);
    refresh();
  }

  // Ask where the job stands, and whether it has ended without an event.
  async function check() {
    if (checking) return;
    checking = true;
    try {
      const reply = await fetch(news, { cache: "no-store" });
      // The job was deleted, or the login has ended.
      if (reply.status === 404 || reply.redirected) return end();
      if (!reply.ok) return;
      const { status, sentence, stages, started_at: started } = await reply.json();
      if (ended) return;
      if (!["queued", "in_progress"].includes(status)) return end();
      const standing = document.getElementById("standing");
      const [words, place] = standing.children;
      if (words && words.textContent !== sentence) words.replaceChildren(), append(words, sentence);
      if (place && place.dataset.started !== started) {
        characters = [];
        if (started) place.dataset.started = started;
        else place.removeAttribute("data-started"), place.replaceChildren();
      }
      for (const [id, { state, attempt }] of Object.entries(stages)) {
        if (!part(id, "state")) continue;
        part(id, "state").textContent = state;
        part(id, "attempt").textContent = attempt > 1 ? `, attempt ${attempt}` : "";
      }
    } catch { /* the server is away */ } finally { checking = false; }
  }

  // Show what came of a stage that has finished: its changes, its tokens, its bar.
  async function renew() {
    try {
      const reply = await fetch(location.href, { cache: "no-store" });
      const page = await parsed(reply);
      if (!ended && reply.ok && isLive(page)) update(page, true);
    } catch { /* the server is away */ }
  }

  function connect() {
    events?.close();
    // Browsers limit the connections to a server: tabs in the background leave them to the others.
    if (ended || document.hidden) return;
    // It reconnects by itself, and resumes after the last event that it received.
    const source = events = new EventSource(`${address}?stream=true`);
    const on = (name, handle) => source.addEventListener(name, (e) => handle(JSON.parse(e.data)));
    const streamed = new Set();

    source.addEventListener("open", () => {
      connectedAt = performance.now();
      notify("");
    });
    source.addEventListener("error", async () => {
      notify("Connection lost. Reconnecting…");
      await check();
      // After an error response the browser gives up. The server may be back in a moment.
      if (source.readyState !== EventSource.CLOSED) return;
      await pause();
      if (source === events) connect();
    });
    on("response.in_progress", ({ response }) => {
      // The job restarted with another model, and has other texts.
      if (response.run > Number(document.querySelector("[data-run]").dataset.run)) location.reload();
      const status = document.getElementById("status");
      if (status.classList.contains("queued")) {
        status.className = "status in_progress";
        status.textContent = "In progress";
        document.title = document.title.replace("Queued", "In progress");
        check();
      }
    });
    // The events start at the beginning. Texts that the page has already stay as they are, and those of
    // earlier runs are not shown.
    const whole = (id) => part(id, "text")?.hasAttribute("data-whole") ?? true;
    on("response.output_item.added", ({ item: { id } }) => {
      if (written.delete(place(id))) part(id, "text").removeAttribute("data-whole");
      if (whole(id)) return;
      // On a narrow screen, the text that is written is shown, unless the reader chose another.
      if (!chosen) part(id, "tab").checked = true;
      part(id, "state").textContent = "writing";
      heardAt = performance.now();
      check();
    });
    for (const kind of ["reasoning_text", "output_text"]) {
      on(`response.${kind}.delta`, ({ item_id: id, delta }) => {
        if (whole(id)) return;
        const text = part(id, "text");
        if (!streamed.has(id)) text.textContent = "";
        streamed.add(id);
        heardAt = performance.now();
        for (const _ of delta) characters.push(heardAt);
        if (silent) check();
        append(text, delta);
      });
      on(`response.${kind}.done`, ({ item_id: id, text }) => {
        if (whole(id)) return;
        if (text) part(id, "text").replaceChildren(), append(part(id, "text"), text);
        part(id, "text").setAttribute("data-whole", "");
        written.add(place(id));
        setTimeout(renew, RETRY_DELAY);
        characters = [];
        part(id, "state").textContent = "finished";
      });
    }
    for (const name of ["completed", "incomplete", "failed"]) on(`response.${name}`, end);
  }

  document.querySelector(".stages").addEventListener("change", () => { chosen = true; });
  const timer = setInterval(check, CHECK_INTERVAL);
  const clock = setInterval(tick, 1000);
  document.addEventListener("visibilitychange", connect);
  connect();
}

prepare(document);
const form = document.querySelector("form.ask");
if (form) {
  askForm(form);
  countTokens(form);
}
const article = document.querySelector("article[data-response]");
if (article) follow(article.dataset.response, article.dataset.news);
if (document.querySelector("article[data-run]")) jobPage();
