"""The page that shows the OpenAPI document, and that can send requests."""

from litestar import MediaType, Router, get
from litestar.response import Template

from signoff.dashboard.shell import API, page
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices

# Swagger UI draws its arrows and locks from images in its style sheet.
_IMAGES = "; img-src 'self' data:"


@get("/dashboard/api", include_in_schema=False, media_type=MediaType.HTML)
async def show_api(request: AnyRequest, services: InjectedServices, caller: InjectedCaller) -> Template:
    """Show all routes with their parameters, bodies and answers."""
    shown = page(request, services, caller, "api.html", API.name)
    shown.headers["content-security-policy"] += _IMAGES
    return shown


router = Router("/", route_handlers=[show_api])
