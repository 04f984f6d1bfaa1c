// Reviewing by keyboard: each control with data-key has a key.

import { onKeys } from "./keys.js";

const form = document.querySelector("form.rating");
const TEXT = "textarea, select, input:not([type=radio])";

let sent = false;
form?.addEventListener("submit", (event) => {
  // A double press saves once.
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => { sent = false; });

if (form) document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  const typing = target.closest(TEXT);
  if (key === "Enter" && (event.ctrlKey || event.metaKey) && form.contains(target)) {
    event.preventDefault();
    form.requestSubmit();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || target.closest("dialog")) return;
  if (typing) {
    if (key === "Escape") typing.blur();
    return;
  }
  if (key === "Enter" && !target.closest("a, button, summary, input")) {
    event.preventDefault();
    form.requestSubmit();
  }
});

const KEYS = [
  ["1 2 3", "rate the regeneration"], ["q w e", "rate the critique"],
  ["c n t", "corrected answer, note, tags"], ["s", "skip"], ["Enter", "save; in a field Ctrl + Enter"], ["Esc", "leave a field"],
];
if (form) onKeys(KEYS, TEXT, (event) => {
  const { key } = event;
  const control = form.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!control) return;
  event.preventDefault();
  if (control.matches("a")) return control.click();
  if (control.matches("[type=radio]")) control.checked = true;
  // Screen readers say what has the focus. The texts stay where they are.
  control.focus({ preventScroll: control.matches("[type=radio]") });
});
