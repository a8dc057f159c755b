// The OpenAPI document as a page that can be browsed and that sends requests, by Swagger UI.

import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "swagger-ui-dist/swagger-ui.css";

const place = document.getElementById("api");
SwaggerUI({
  domNode: place,
  url: place.dataset.document,
  validatorUrl: null, // it would send the document elsewhere
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  defaultModelsExpandDepth: -1,
  tryItOutEnabled: false,
});
