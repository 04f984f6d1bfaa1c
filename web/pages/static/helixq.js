// What the script adds to the pages: local times, live texts, Ctrl + Enter.

// Milliseconds before a failed request is retried.
const RETRY_DELAY = 2000;
// Milliseconds between checks of a job, in case its events do not arrive.
const CHECK_INTERVAL = 20000;
// The maximum number of bytes of a form. The server would refuse a larger one, and the text would be lost.
const MAX_FORM = 1 << 20;

const pause = () => new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

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

function notify(text) {
  const notice = document.querySelector("[data-notice]");
  if (notice.textContent !== text) notice.textContent = text;
}

// Update the marked parts from the page as the server renders it now. All else stays: the selection, the
// focus, what was opened, and the live region that is read aloud.
function update(page, more) {
  const fresh = [...page.querySelectorAll("[data-live]")];
  // The job restarted with another model, and has other texts.
  if (fresh.some(({ id }) => !document.getElementById(id))) return location.reload();
  localTimes(page);
  const focused = document.activeElement;
  for (const part of fresh) {
    const shown = document.getElementById(part.id);
    // The text that was streamed stays until the server has stored it.
    if (more && part.matches(".text:empty")) continue;
    shown.className = part.className;
    if (shown.innerHTML !== part.innerHTML) shown.replaceChildren(...part.childNodes);
  }
  notify("");
  // The button that had the focus may be gone. The keyboard continues from the same place.
  if (!focused.isConnected) document.querySelector("main").focus({ preventScroll: true });
}

// Show how the job ended, as soon as the server responds.
async function refresh() {
  for (;;) {
    try {
      const reply = await fetch(location.href, { cache: "no-store" });
      if (reply.status < 500) {
        const page = new DOMParser().parseFromString(await reply.text(), "text/html");
        // The job may have been deleted: the browser shows what there is instead.
        if (!page.querySelector("[data-live]")) return location.reload();
        // The text of a cancelled stage arrives a moment after the cancellation.
        const more = page.querySelector("[data-response]") !== null;
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
function follow(address) {
  let events;
  let ended = false;
  const part = (id, name) => document.getElementById(`${name}-${id}`);

  function end() {
    if (ended) return;
    ended = true;
    events?.close();
    clearInterval(timer);
    refresh();
  }

  // Check whether the job has ended without an event.
  async function check() {
    try {
      const reply = await fetch(address, { cache: "no-store" });
      // The job was deleted, or the login has ended.
      if ([401, 404].includes(reply.status)) return end();
      if (reply.ok && !["queued", "in_progress"].includes((await reply.json()).status)) end();
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

    source.addEventListener("open", () => notify(""));
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
      }
    });
    // The events start at the beginning. Texts that the page has already stay as they are, and those of
    // earlier runs are not shown.
    const whole = (id) => part(id, "text")?.hasAttribute("data-whole") ?? true;
    on("response.output_item.added", ({ item: { id } }) => {
      if (!whole(id)) part(id, "state").textContent = "writing";
    });
    for (const kind of ["reasoning_text", "output_text"]) {
      on(`response.${kind}.delta`, ({ item_id: id, delta }) => {
        if (whole(id)) return;
        const text = part(id, "text");
        if (!streamed.has(id)) text.textContent = "";
        streamed.add(id);
        text.append(delta);
      });
      on(`response.${kind}.done`, ({ item_id: id, text }) => {
        if (whole(id)) return;
        if (text) part(id, "text").textContent = text;
        part(id, "text").setAttribute("data-whole", "");
        part(id, "state").textContent = "finished";
      });
    }
    for (const name of ["completed", "incomplete", "failed"]) on(`response.${name}`, end);
  }

  const timer = setInterval(check, CHECK_INTERVAL);
  document.addEventListener("visibilitychange", connect);
  connect();
}

localTimes(document);
const form = document.querySelector("form.ask");
if (form) askForm(form);
const article = document.querySelector("article[data-response]");
if (article) follow(article.dataset.response);
