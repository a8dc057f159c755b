"""URLs of models: parsing, checking, and the paths below a base URL; cached for all requests that use them."""

import re
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

from yarl import URL

from signoff.core.allow_list import check_model_url
from signoff.errors import AddressRefused, ModelFailed, ModelUnreachable

ADDRESS_NOT_ALLOWED = "The model's address is in a range that is closed to models (link-local, metadata services)."
_VERSION = re.compile(r"/v\d\w*(/|$)")
_SLASHES = re.compile("/{2,}")
# An API path at the end of a URL that was pasted whole. `/models` counts only behind a version: Azure's base URLs of AI
# inference end in it.
_API_PATH = re.compile(
    r"/(?:chat/completions|completions|embeddings|responses|messages(?:/count_tokens)?|moderations|rerank|edits"
    r"|audio/(?:speech|transcriptions|translations)|images/(?:generations|edits|variations))$"
    r"|(?<=/)(?P<version>v\d\w*)/models$"
)
_AZURE_HOSTS = (".azure.com", ".azure.us", ".azure.cn")
_AZURE_DEPLOYMENT = "/openai/deployments/"
_AZURE_VERSION = "api-version"
_ANTHROPIC_HOST = "anthropic.com"


@lru_cache(maxsize=1024)
def parse_model_url(url: str) -> URL:
    """Parse `url`, whose query is not re-encoded. Raises ModelFailed, and ModelUnreachable for an invalid URL.

    An IP address in the URL itself never goes through a resolver, so it is checked here.
    """
    parsed = None
    try:
        parsed = URL(url, encoded="?" in url)
        check_model_url(str(parsed.origin()))
    except (ValueError, AddressRefused):
        if parsed is None or parsed.host is None or parsed.scheme not in {"http", "https"}:
            raise ModelUnreachable("The model's `url` is not a valid http or https URL.") from None
        raise ModelFailed(ADDRESS_NOT_ALLOWED) from None
    return parsed


@lru_cache(maxsize=1024)
def path_url(base_url: str, path: str, query: str | None = None) -> str:
    """Return the URL for `path`, which starts with /v1, at an OpenAI-compatible server.

    Repeated slashes, slashes at the end and a fragment of `base_url` are dropped. /v1 is left out if the base URL has a
    version of its own, is one of Azure's, or was pasted with an API path, which `path` replaces. The query is that of
    `base_url` and what `query` adds to it; a parameter of the base URL cannot be replaced.
    """
    base = urlsplit(base_url)
    root = _SLASHES.sub("/", base.path).rstrip("/")
    bare = _API_PATH.sub(r"\g<version>" if root.endswith("/models") else "", root)
    needs_version = bare == root and not _VERSION.search(root) and not _is_azure_root(root, base.query)
    url = f"{base.scheme}://{base.netloc}{bare.rstrip('/')}{path if needs_version else path.removeprefix('/v1')}"
    joined = _joined_query(base.query, query or "")
    return f"{url}?{joined}" if joined else url


def _is_azure_root(path: str, query: str) -> bool:
    return _AZURE_DEPLOYMENT in f"{path}/" or _has_parameter(query, _AZURE_VERSION)


def _joined_query(base: str, query: str) -> str:
    """Return the parameters of `base` and those of `query` that `base` does not have, as they are written."""
    if not (base and query):
        return base or query
    fixed = {name for name, _ in _parameters(base)}
    added = [each for each in query.split("&") if not any(name in fixed for name, _ in _parameters(each))]
    return "&".join([base, *added])


def _parameters(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)


def _has_parameter(query: str, name: str) -> bool:
    return any(each.lower() == name for each, _ in _parameters(query))


@lru_cache(maxsize=1024)
def key_headers(base_url: str, path: str) -> tuple[str, ...]:
    """Return the names of the headers that carry the upstream key in a request for `path`.

    Azure reads `api-key`; its URLs have a host of Azure, `/openai/deployments/` or the parameter `api-version`.
    Anthropic reads `x-api-key`; so do other servers of its API, whose base URLs end in `/anthropic`. Servers that offer
    `/v1/messages` besides OpenAI's API read one or the other. All others read a bearer token.
    """
    base = urlsplit(base_url)
    host = base.hostname or ""
    if host.endswith(_AZURE_HOSTS) or _is_azure_root(base.path, base.query):
        return ("api-key",)
    if host == _ANTHROPIC_HOST or host.endswith(f".{_ANTHROPIC_HOST}") or "anthropic" in base.path.split("/"):
        return ("x-api-key",)
    return ("authorization", "x-api-key") if is_messages_route(path) else ("authorization",)


def is_messages_route(path: str) -> bool:
    """Return True if `path`, which starts with /v1, is of Anthropic's API."""
    return path.split("/")[2:3] == ["messages"]
