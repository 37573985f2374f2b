const place = document.getElementById("swagger-ui");
SwaggerUIBundle({ url: place.dataset.document, domNode: place, deepLinking: true, docExpansion: "none", defaultModelsExpandDepth: 0, validatorUrl: null });
