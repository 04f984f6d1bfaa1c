// Shows the description with Swagger UI.
const api = document.getElementById("api");
window.SwaggerUIBundle({ domNode: api, url: api.dataset.description, deepLinking: true });
