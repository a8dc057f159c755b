"""The library of named review policies: save, list and delete them, for admins."""

from collections.abc import Sequence

from signoff.core.access import Caller, check_admin
from signoff.core.allow_list import checked_host
from signoff.core.reviews.compiled import BadRuleError, CompiledPolicy, policy_from_draft
from signoff.core.reviews.policy_faults import policy_fault
from signoff.core.reviews.rules import PolicyDraft, ReviewPolicy
from signoff.errors import BadRequest, NotFound
from signoff.work.services import Services


async def save_policy(
    services: Services, caller: Caller, name: str, draft: PolicyDraft, *, expected_version: int | None = None
) -> ReviewPolicy:
    """Add a version of the policy, which every process applies within a second; return it.

    Raises Forbidden, BadRequest for a value or a condition that is not valid, AddressRefused for its webhook, Conflict
    if another policy has its target, and VersionConflict unless `expected_version` applies now (0: none, None: any).
    """
    check_admin(caller)
    policy = policy_from_draft(draft, name, user_id=caller.user_id, token_id=caller.token_id)
    check_policy(services, policy)
    saved = await services.store.policies.put(policy, expected_version=expected_version)
    services.caches.policies.invalidate()
    return saved


def check_policy(services: Services, policy: ReviewPolicy) -> CompiledPolicy:
    """Return the policy, compiled. Raises BadRequest, AddressRefused."""
    try:
        compiled = CompiledPolicy(policy)
    except BadRuleError as error:
        raise BadRequest(f"{error}.") from None
    if (fault := policy_fault(compiled)) is not None:
        raise BadRequest(fault)
    if policy.webhook is not None:
        checked_host(policy.webhook.url, services.rules.allow_list)
        if not services.rules.webhook_secrets:
            raise BadRequest(
                "`webhook` needs the setting `webhook_secret` to sign its messages with, and that is empty; set it."
            )
    return compiled


async def get_policy(services: Services, caller: Caller, name: str, version: int | None = None) -> ReviewPolicy:
    """Return a version of a policy, also of a deleted one; by default the one that applies.

    Raises Forbidden, NotFound.
    """
    check_admin(caller)
    policy = await services.store.policies.get(name, version)
    if policy is None:
        raise no_policy(name, version)
    return policy


def no_policy(name: str, version: int | None = None) -> NotFound:
    """Return the error for a policy, or a version of it, that does not exist."""
    of_version = "" if version is None else f" with the version {version}"
    return NotFound(f"There is no policy {name!r}{of_version}; GET /api/policies lists all policies.")


async def list_policies(services: Services, caller: Caller, *, after: str, limit: int) -> Sequence[ReviewPolicy]:
    """Return a page of the policies that apply, by name. Raises Forbidden."""
    check_admin(caller)
    return await services.store.policies.page(after=after, limit=limit)


async def list_policy_versions(
    services: Services, caller: Caller, name: str, *, before: int | None, limit: int
) -> Sequence[ReviewPolicy]:
    """Return a page of the versions of a policy, the newest first. Raises Forbidden, and NotFound if it has none."""
    check_admin(caller)
    versions = await services.store.policies.versions(name, before=before, limit=limit)
    if not versions and before is None:
        raise no_policy(name)
    return versions


async def remove_policy(services: Services, caller: Caller, name: str) -> None:
    """Delete a policy. Jobs that were submitted under it are judged by it still. Raises Forbidden, NotFound."""
    check_admin(caller)
    if not await services.store.policies.drop(name):
        raise no_policy(name)
    services.caches.policies.invalidate()
