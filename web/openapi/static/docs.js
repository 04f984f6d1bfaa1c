// Shows the description with Swagger UI, in the colors that the reader's system has.
const api = document.getElementById("api");
const dark = matchMedia("(prefers-color-scheme: dark)");
const color = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", color);
color();
// There is one server, which needs no choice.
const oneServer = () => ({ components: { ServersContainer: () => null } });
// What Swagger UI leaves to be desired for those who do not see the page.
const accessible = ({ React: { createElement } }) => ({
  wrapComponents: {
    // Its first part is in no landmark.
    InfoContainer: (Original) => (props) => createElement("div", { role: "banner" }, createElement(Original, props)),
    // The headings go from the first level to the third.
    operations: (Original) => (props) =>
      createElement("div", null, createElement("h2", { className: "read" }, "Operations"), createElement(Original, props)),
    // An operation is a button, with a link to itself in it. Opening it puts it into the address too.
    DeepLink: (Original) => (props) =>
      props.path.includes("/") ? createElement("span", null, props.text) : createElement(Original, props),
  },
});
const plugins = [oneServer, accessible];
window.SwaggerUIBundle({ domNode: api, url: api.dataset.description, deepLinking: true, plugins });
