// What the pages do better with a script: local times, live texts, Ctrl + Enter.

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

function submitByKey() {
  const question = document.querySelector("form.ask textarea");
  if (!question) return;
  document.querySelector("[data-submit-hint]").hidden = false;
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) question.form.requestSubmit();
  });
}

// Put the server's own rendering of the page in place of what the script has built.
async function refresh() {
  const reply = await fetch(location.href, { cache: "no-store" });
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  const main = page.querySelector("main");
  localTimes(main);
  document.querySelector("main").replaceWith(document.adoptNode(main));
}

// Show texts as they are written. EventSource reconnects by itself and goes on after the
// last event it has seen.
function follow(article) {
  const stage = (id) => article.querySelector(`[data-item="${CSS.escape(id)}"]`);
  const status = article.querySelector("[data-status]");
  const events = new EventSource(article.dataset.events);
  const on = (name, handle) => events.addEventListener(name, (e) => handle(JSON.parse(e.data)));
  const seen = new Set();

  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) {
      // The browser gives up on an error page; the server may be back in a moment.
      say("Connection lost, trying again");
      setTimeout(() => follow(article), 2000);
    } else {
      say("Connection lost, trying again");
    }
  });
  events.addEventListener("open", () => {
    if (status.textContent.startsWith("Connection lost")) say("Connected again");
  });
  on("response.queued", () => say("Queued"));
  on("response.in_progress", () => {
    say("In progress");
    status.className = "status in_progress";
  });
  on("response.output_item.added", ({ item }) => {
    stage(item.id).querySelector("[data-state]").textContent = "writing";
  });
  for (const kind of ["reasoning_text", "output_text"]) {
    on(`response.${kind}.delta`, ({ item_id, delta }) => {
      const text = stage(item_id).querySelector("[data-text]");
      if (!seen.has(item_id)) text.textContent = "";
      seen.add(item_id);
      text.append(delta);
    });
    on(`response.${kind}.done`, ({ item_id, text }) => {
      const section = stage(item_id);
      section.querySelector("[data-text]").textContent = text;
      section.querySelector("[data-state]").textContent = "finished";
    });
  }
  for (const name of ["completed", "incomplete", "failed"]) {
    on(`response.${name}`, () => {
      events.close();
      refresh();
    });
  }
}

localTimes(document);
submitByKey();
const article = document.querySelector("article[data-events]");
if (article) follow(article);
