// Keys of a single character, which can be switched off (WCAG 2.1.4), and the dialog that lists them.

// Where the browser keeps that they are off.
const SETTING = "helixq.keys";

const known = [];

function stored() {
  try { return localStorage.getItem(SETTING) !== "off"; } catch { return true; }
}

let on = stored();

// Show the hints of keys, or hide them where the keys are off.
export function showHints(root) {
  for (const hint of root.querySelectorAll("[data-key-hint]")) hint.hidden = !on;
}

function set(value) {
  on = value;
  // Not where the browser keeps nothing.
  try { localStorage.setItem(SETTING, on ? "on" : "off"); } catch { /* until the page is left */ }
  showHints(document);
}

const make = (name, properties, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

function open() {
  const names = (keys) => keys.split(" ").flatMap((key) => [make("kbd", {}, key), " "]);
  const rows = [...known, ["?", "show these shortcuts"]].flatMap(([keys, what]) => [make("dt", {}, ...names(keys)), make("dd", {}, what)]);
  const box = make("input", { type: "checkbox", checked: on });
  box.addEventListener("change", () => set(box.checked));
  const dialog = make(
    "dialog", { className: "keys" },
    make("h2", { id: "keys-title" }, "Keyboard shortcuts"),
    make("dl", {}, ...rows),
    make("label", {}, box, " Single keys are on"),
    make("form", { method: "dialog" }, make("button", { className: "quiet small" }, "Close")),
  );
  dialog.setAttribute("aria-labelledby", "keys-title");
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// Call a function at keys without a modifier, outside of fields, if single keys are on.
//   list: the keys and what each does, for the dialog.
//   fields: a selector of the elements where keys are text.
export function onKeys(list, fields, handle) {
  if (!known.length) {
    const button = make("button", { type: "button", className: "quiet small" }, "Shortcuts");
    button.addEventListener("click", open);
    (document.querySelector("footer .facts") ?? document.querySelector("main")).append(button);
  }
  known.push(...list);
  const first = known.length === list.length;
  document.addEventListener("keydown", (event) => {
    if (!on || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest(`dialog, ${fields}`)) return;
    if (event.key === "?") { if (first) open(); return; }
    handle(event);
  });
}
