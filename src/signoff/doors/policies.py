"""The native API of named review policies: `/api/policies`, for admins."""

from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post, put
from litestar.params import FromPath, FromQuery, QueryParameter

from signoff.core.reviews.rules import PolicyDraft, ReviewPolicy
from signoff.core.wire import format_time
from signoff.doors.dependencies import AnyRequest, InjectedCaller, InjectedServices
from signoff.doors.http import INTS, parse_json
from signoff.work.reviews.dry_run import dry_run
from signoff.work.reviews.library import (
    get_policy,
    list_policies,
    list_policy_versions,
    remove_policy,
    save_policy,
)
from signoff.work.reviews.past_answers import MAX_LAST
from signoff.work.reviews.recommend import CAUGHT_SHARE, recommend

MAX_PAGE = 500
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Version = Annotated[int | None, QueryParameter(ge=1, lt=INTS)]


class DryRunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/policies/{name}/dry-run`."""

    last: int = 1000
    """Number of past answers to judge, from the newest on."""
    policy: PolicyDraft | None = None
    """Draft of the policy; None for the policy as it applies now."""


class RecommendationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /api/policies/{name}/recommendation`."""

    last: int = MAX_LAST
    """Number of past answers to look at, from the newest on."""
    caught: float = CAUGHT_SHARE
    """Share of the wrong answers that the rule is to catch, above 0 and up to 1."""


@get("/", summary="List review policies")
async def get_policies(
    services: InjectedServices, caller: InjectedCaller, after: FromQuery[str | None] = None, limit: Limit = 50
) -> dict[str, Any]:
    """Return a page of the policies that apply, by name. Pass `next` as `after` to get the next page."""
    policies = await list_policies(services, caller, after=after or "", limit=limit)
    cursor = policies[-1].name if len(policies) == limit else None
    return {"data": [_policy_json(policy) for policy in policies], "next": cursor}


@get("/{name:str}", summary="Get a review policy")
async def get_one_policy(
    services: InjectedServices, caller: InjectedCaller, name: FromPath[str], version: Version = None
) -> dict[str, Any]:
    """Return the version `version`, also of a policy that was deleted; by default the one that applies."""
    return _policy_json(await get_policy(services, caller, name, version))


@get("/{name:str}/versions", summary="List the versions of a review policy")
async def get_versions(
    services: InjectedServices,
    caller: InjectedCaller,
    name: FromPath[str],
    before: Version = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Return a page of the versions, newest first. Pass `next` as `before` to get the next page."""
    versions = await list_policy_versions(services, caller, name, before=before, limit=limit)
    cursor = versions[-1].version if len(versions) == limit else None
    return {"data": [_policy_json(version) for version in versions], "next": cursor}


@put("/{name:str}", summary="Save a review policy")
async def put_policy(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """Save the body as a new version, which all processes apply within a second, and return it."""
    draft = parse_json(await request.body(), PolicyDraft, "policy")
    return _policy_json(await save_policy(services, caller, name, draft))


@delete("/{name:str}", status_code=204, summary="Delete a review policy")
async def delete_policy(services: InjectedServices, caller: InjectedCaller, name: FromPath[str]) -> None:
    """Delete the policy. It still applies to jobs that were submitted under it."""
    await remove_policy(services, caller, name)


@post("/{name:str}/recommendation", status_code=200, summary="Recommend a rule from the decisions of reviewers")
async def post_recommendation(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """Return a draft of the policy with a rule that is fitted to what people decided. Nothing is saved."""
    order = parse_json(await request.body() or b"{}", RecommendationRequest, "recommendation")
    return msgspec.to_builtins(await recommend(services, caller, name, last=order.last, caught=order.caught))


@post("/{name:str}/dry-run", status_code=200, summary="Try a review policy on past answers")
async def post_dry_run(
    request: AnyRequest, services: InjectedServices, caller: InjectedCaller, name: FromPath[str]
) -> dict[str, Any]:
    """Count what the policy, or a draft of it, would have said about past answers. No model is asked."""
    order = parse_json(await request.body() or b"{}", DryRunRequest, "dry run")
    return msgspec.to_builtins(await dry_run(services, caller, name, last=order.last, draft=order.policy))


def _policy_json(policy: ReviewPolicy) -> dict[str, Any]:
    hidden = {"user_id", "token_id"}
    members = {name: value for name, value in msgspec.to_builtins(policy).items() if name not in hidden}
    return members | {"created_at": format_time(policy.created_at)}


router = Router(
    "/api/policies",
    route_handlers=[
        get_policies,
        get_one_policy,
        get_versions,
        put_policy,
        delete_policy,
        post_recommendation,
        post_dry_run,
    ],
    tags=["policies"],
)
