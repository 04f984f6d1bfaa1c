// What the pages do better with a script: local times, live texts, Ctrl + Enter.

// Milliseconds before a request that failed is tried again.
const RETRY = 2000;
// Milliseconds between looks at a job whose events may not reach us.
const CHECK = 20000;
// Bytes of a form that the server takes; over that it could not give the text back.
const MAX_FORM = 1 << 20;

const pause = () => new Promise((resolve) => setTimeout(resolve, RETRY));

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
  // A double click asks once.
  let sent = false;
  form.addEventListener("submit", (event) => {
    const body = new URLSearchParams({ question: question.value.replaceAll("\n", "\r\n") });
    if (body.toString().length > MAX_FORM) {
      event.preventDefault();
      question.setCustomValidity("The question is too long; shorten it.");
      question.reportValidity();
      return;
    }
    if (sent) event.preventDefault();
    sent = true;
    setTimeout(() => { sent = false; }, RETRY);
  });
}

function notify(text) {
  const notice = document.querySelector("[data-notice]");
  if (notice.textContent !== text) notice.textContent = text;
}

// Bring the marked parts up to date with the server's own rendering. All else stays as it
// is: the selection, the focus, what was opened, and the live region that is read aloud.
function update(page, more) {
  const fresh = [...page.querySelectorAll("[data-live]")];
  // It started again meanwhile, with another model: other texts are to be shown.
  if (fresh.some(({ id }) => !document.getElementById(id))) return location.reload();
  localTimes(page);
  const focused = document.activeElement;
  for (const part of fresh) {
    const shown = document.getElementById(part.id);
    // What was seen being written stays until the record has it.
    if (more && part.matches(".text:empty")) continue;
    shown.className = part.className;
    if (shown.innerHTML !== part.innerHTML) shown.replaceChildren(...part.childNodes);
  }
  notify("");
  // The button that had the focus may be gone; the keyboard goes on from the same place.
  if (!focused.isConnected) document.querySelector("main").focus({ preventScroll: true });
}

// Show how the job ended, as soon as the server tells.
async function refresh() {
  for (;;) {
    try {
      const reply = await fetch(location.href, { cache: "no-store" });
      if (reply.status < 500) {
        const page = new DOMParser().parseFromString(await reply.text(), "text/html");
        // Deleted meanwhile, say: the browser shows what there is instead.
        if (!page.querySelector("[data-live]")) return location.reload();
        // The text of a stage that was cancelled comes a moment after the cancel.
        const more = page.querySelector("[data-response]") !== null;
        update(page, more);
        if (!more) return document.querySelector("article").removeAttribute("data-response");
        await pause();
        continue;
      }
    } catch { /* the server is away */ }
    notify("Connection lost, trying again");
    await pause();
  }
}

// Show texts as they are written, until the job has ended.
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

  // Ask whether the job has ended while no event could tell it.
  async function check() {
    try {
      const reply = await fetch(address, { cache: "no-store" });
      if (reply.status === 404) return end();
      if (reply.ok && !["queued", "in_progress"].includes((await reply.json()).status)) end();
    } catch { /* the server is away */ }
  }

  function connect() {
    events?.close();
    // Browsers keep few connections to one server: tabs in the background leave them to others.
    if (ended || document.hidden) return;
    // It reconnects by itself and goes on after the last event it has seen.
    const source = events = new EventSource(`${address}?stream=true`);
    const on = (name, handle) => source.addEventListener(name, (e) => handle(JSON.parse(e.data)));
    const begun = new Set();

    source.addEventListener("open", () => notify(""));
    source.addEventListener("error", async () => {
      notify("Connection lost, trying again");
      await check();
      // At an error page the browser gives up; the server may be back in a moment.
      if (source.readyState !== EventSource.CLOSED) return;
      await pause();
      if (source === events) connect();
    });
    on("response.in_progress", ({ response }) => {
      // It started again, with another model: the page has other texts to show.
      if (response.run > Number(document.querySelector("[data-run]").dataset.run)) location.reload();
      const status = document.getElementById("status");
      if (status.classList.contains("queued")) {
        status.className = "status in_progress";
        status.textContent = "In progress";
      }
    });
    // The events tell everything from the start; what the page has already stays.
    // So do those of an earlier run, which it does not show.
    const whole = (id) => part(id, "text")?.hasAttribute("data-whole") ?? true;
    on("response.output_item.added", ({ item: { id } }) => {
      if (!whole(id)) part(id, "state").textContent = "writing";
    });
    for (const kind of ["reasoning_text", "output_text"]) {
      on(`response.${kind}.delta`, ({ item_id: id, delta }) => {
        if (whole(id)) return;
        const text = part(id, "text");
        if (!begun.has(id)) text.textContent = "";
        begun.add(id);
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

  const timer = setInterval(check, CHECK);
  document.addEventListener("visibilitychange", connect);
  connect();
}

localTimes(document);
const form = document.querySelector("form.ask");
if (form) askForm(form);
const article = document.querySelector("article[data-response]");
if (article) follow(article.dataset.response);
