"""The OpenAPI document of all routes: Litestar's, with the bodies, answers and errors that handlers read themselves."""
