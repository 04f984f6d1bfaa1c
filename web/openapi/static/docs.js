// Shows the description with Swagger UI, in the colors that the reader's system has.
const api = document.getElementById("api");
const dark = matchMedia("(prefers-color-scheme: dark)");
const color = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", color);
color();
// There is one server, which needs no choice.
const oneServer = () => ({ components: { ServersContainer: () => null } });
window.SwaggerUIBundle({ domNode: api, url: api.dataset.description, deepLinking: true, plugins: [oneServer] });
