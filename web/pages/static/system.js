// The page of the system updates by itself.

// Milliseconds between updates.
const INTERVAL = 5000;

const notice = document.querySelector("[data-notice]");

async function update() {
  if (document.hidden) return;
  let message = "";
  try {
    const reply = await fetch(location.href, { cache: "no-store" });
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    // The login has ended.
    if (reply.redirected) return location.reload();
    if (!reply.ok) throw new Error(reply.status);
    for (const part of page.querySelectorAll("[data-live]")) {
      const shown = document.getElementById(part.id);
      // What has the focus stays as it is.
      if (!shown || shown.contains(document.activeElement)) continue;
      if (shown.innerHTML !== part.innerHTML) shown.replaceChildren(...part.childNodes);
    }
  } catch { message = "The server does not respond."; }
  if (notice.textContent !== message) notice.textContent = message;
}

setInterval(update, INTERVAL);
document.addEventListener("visibilitychange", update);
