"""HTML pages: one module for each page, with templates and static files beside them."""
