"""Identification of the caller by every route, and checks of the owner by every operation on an object."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, cast

import pytest

from project.access_rules import (
    direct_loads,
    foreign_filters,
    handlers,
    unchecked,
    unidentified,
    unused,
    unused_callers,
    without_caller,
)
from signoff.doors.http import AsgiDoor
from signoff.server.http import _litestar_app, make_router
from signoff.settings import Settings
from support.syntax import tree_of

SOURCE = Path(__file__).parents[2] / "src" / "signoff"
ANY_CALLER = {
    "doors/health.py get_liveness": "supervisors probe the process without a token, and learn nothing else",
    "doors/health.py get_readiness": "load balancers probe the server without a token; only callers with one see names",
    "doors/metrics.py get_metrics": "calls `caller_of` itself, unless the request has the token for metrics",
    "doors/jobs.py get_liveness": "another path of the same probe",
    "doors/session.py post_session": "signs a visitor in, by a password",
    "doors/session.py get_sign_in_link": "signs a visitor in, by the one-time code of a link",
    "doors/session.py delete_session": "calls `caller_of` itself, and ends the session of the request's own cookie",
    "dashboard/home.py show_home": "calls `caller_of` itself, and shows visitors how to sign in",
    "dashboard/home.py show_sign_in": "shows the form, and nothing of the server",
    "dashboard/oidc.py get_begin": "leads a visitor to the provider, which signs them in",
    "dashboard/oidc.py get_callback": "signs a visitor in, by the answer of the provider",
    "dashboard/oidc.py get_sign_out": "leads to the sign-out of the provider, with the cookie of the request",
    "dashboard/home.py post_sign_out": "ends the session of the request's own cookie, also one that is over",
}
CHECKED_OTHERWISE = {
    "work/admin/people.py invite_user": "calls `add_user`, which checks `check_admin` first",
    "work/admin/people.py revoke_token": "the store revokes only tokens of the user whose id it gets",
    "work/admin/keys.py add_key": "creates the key, which belongs to the caller",
    "work/jobs/query.py get_job": "is the check itself: `may_see`",
    "work/jobs/query.py get_by_client_id": "looks among the caller's own jobs, and then calls `get_job`",
    "work/jobs/query.py follow_events": "calls `list_events`, which calls `get_job`",
    "work/reviews/held.py load_held": "is the check itself: the role and the queue",
    "work/reviews/desk.py decide_on_desk": "calls `decide_with_draft`, which loads the job by `load_held`",
    "work/reviews/bulk.py _is_decided_by": "looks for the bulk's own id in events, and returns True or False alone",
    "work/reviews/bulk.py get_bulk": "is the check itself: the reviewer of the bulk decision",
    "work/pipelines/library.py get_item": "is the check itself: `may_use_item`",
    "work/pipelines/library.py _checked_item": "checks a draft; `save_version` has checked the owner",
    "work/admin/cache.py _narrow": "is the check itself: refuses the address of another user, except to admins",
    "work/admin/views.py drop_view": "the store deletes only views of the caller",
    "work/inference/resolve.py precedes_patterns": "looks at the names of models, which all callers may use",
    "work/pipelines/library.py _check_shared_name": "only refuses a name, for operations that have checked the owner",
    "work/inference/resolve.py resolve_target": "models are for all callers; for others it calls `_find_item`",
}
LOADERS = {
    "work/jobs/query.py get_job": "checks `may_see`, and redacts",
    "work/jobs/query.py get_by_client_id": "looks among the caller's own jobs",
    "work/jobs/query.py list_events": "calls `get_job` first",
    "work/jobs/query.py may_see_steps": "loads the run of a step, and returns True or False alone",
    "work/jobs/query.py load_job": "is the loader without a check",
    "work/jobs/query.py wait_in_request": "is `wait_until` for a caller on a connection",
    "work/jobs/query.py wait_until": "waits for a job that its callers have checked; they redact what they pass on",
    "work/admin/people.py list_sessions": "is for admins alone, who may see the sessions of everybody",
    "work/jobs/search.py _filter_of": "finds the user whom a reviewer or an admin names, or the caller",
    "work/batches/files.py find_file": "is the check itself: `may_read`",
    "work/batches/manage.py find_batch": "is the check itself: `may_read`",
    "work/batches/finish.py finish_batch": "asks if the batch of its lease still exists",
    "work/batches/messages.py results_file": "reads the output of a batch that its caller got by `find_batch`",
    "work/jobs/deliver.py _batch_message": "sends a delivery to the receiver that the owner named",
    "work/jobs/redeliver.py redeliver": "checks the job of the delivery",
    "work/jobs/deliver.py _send": "sends a delivery to the receiver that the owner named",
    "work/jobs/deliver.py _is_newest": "compares ids of the owner's jobs, and returns True or False alone",
    "work/pipelines/step.py await_step": "reads the step that the run itself made",
    "work/pipelines/run.py _park": "reads the run that the worker holds",
    "work/call.py _serve": "reads the job of the call itself",
    "work/await_review.py await_review": "reads the job of the call itself",
    "work/reviews/feedback.py _load": "is for `export_feedback`, which checks `check_admin` first",
    "work/reviews/held.py load_held": "checks `may_review` first, and takes held jobs of the caller's queues only",
    "work/reviews/bulk.py _is_decided_by": "looks for the bulk's own id in events, and returns True or False alone",
    "work/reviews/desk.py decide_with_draft": "has loaded the job by `load_held`",
    "work/reviews/leases.py _check_assignee": "is for `assign`, which has loaded the job by `load_held`",
    "work/reviews/queues.py _check_members": "is for `put_queue`, which checks `check_admin`",
    "work/reviews/consult.py _ask": "reads the job that it made itself, for a policy",
    "work/reviews/past_answers.py _answers_of": "is for admins: `dry_run` and `recommend` check that",
    "work/admin/keys.py _load_key": "its callers check `may_remove` or `may_use`",
    "work/admin/people.py list_users": "reads the caller's own row",
    "work/admin/people.py add_user": "checks `check_admin` first",
    "work/admin/people.py find_user": "checks `check_admin` first",
    "work/admin/people.py user_with_email": "is for commands, and for `_owner`, which checks `check_admin`",
    "work/admin/limits.py limit_for": "is for commands and admins: finds the user whom a limit names",
    "work/admin/sign_in.py _check_password": "checks the password",
    "work/admin/sign_in.py sign_in_with_link": "reads the row of the link's own user",
    "work/admin/cache.py _narrow": "refuses other users' addresses first, except to admins",
    "work/accept.py _resend_answer": "sends the answer to a message again to the topic of its stream",
    "work/admin/erasure.py erase_page": "is for erasures that an admin has begun",
    "work/admin/latencies.py recent_latencies": "checks `check_admin` first, and returns times alone",
    "work/admin/people.py list_tokens": "lists those of the caller, except for admins",
    "work/batches/finish.py _pages": "writes the output of the batch that the process has leased",
    "work/batches/manage.py totals_of": "returns numbers of a batch that its caller got by `find_batch`",
    "work/inference/ownership.py find_references": "is the check itself: `_may_use`",
    "work/inference/ownership.py names_held_object": "returns True or False alone",
    "work/jobs/query.py list_jobs": "lists what `_visible_to` allows, and redacts",
    "work/jobs/redeliver.py list_deliveries": "calls `get_job` first",
    "work/pipelines/history.py _last_round": "is for `run_log` and `rerun`, which load the run by `_load_run`",
    "work/pipelines/history.py _may_be_held": "returns True or False alone",
    "work/pipelines/library.py list_versions": "calls `get_item` first",
    "work/pipelines/run.py result": "reads the steps of the run that the worker holds",
    "work/rejoin.py _find_unfinished": "finds a job of the same user, token and request",
    "work/reviews/ballot.py cast_vote": "votes on a job that `decide` has loaded by `load_held`",
    "work/reviews/bulk.py _decided_ids": "looks at the decisions of the bulk's own reviewer",
    "work/reviews/bulk.py get_bulk": "is the check itself: the reviewer of the bulk decision",
    "work/reviews/leases.py _has_voted": "looks for the caller's own vote, and returns True or False alone",
    "work/reviews/past_answers.py past_answers": "is for admins: `dry_run` and `recommend` check that",
    "work/reviews/held.py check_current": "checks a job that its caller got by `load_held`",
    "work/reviews/held.py without_absent_assignee": "is for `settle` and `undo_verdict`, which have the job",
    "work/reviews/held.py _reason_of_end": "is for `load_held`, after the role",
    "work/reviews/history.py open_votes": "counts votes on a job that its caller got by `load_held`",
    "work/reviews/history.py past_verdicts": "looks at verdicts of the caller",
    "work/reviews/history.py recent_agreement": "checks `check_may_review`, and returns numbers alone",
    "work/reviews/ruling_count.py count_rulings": "checks `check_admin` first, and returns numbers alone",
}


FOR_ALL_CALLERS = {
    "doors/prompts.py get_functions": "functions are the operator's, and every user may call them",
    "doors/receipts.py get_key": "the public key verifies receipts, whoever has them",
    "doors/usage.py get_prices": "prices are the operator's, and every user pays them",
}
WITHOUT_CALLER = {
    "work/accept.py decompressed": "reads a message",
    "work/accept.py stream_caller": "returns the caller of a stream",
    "work/admin/health.py endpoint_health": "is for pages of admins, with a model that they may see",
    "work/admin/limits.py limit_for": "finds the subject of a limit, after `check_admin`",
    "work/admin/oidc.py begin_sign_in": "leads a visitor to the provider",
    "work/admin/oidc.py finish_sign_in": "checks the answer of the provider, and signs its user in",
    "work/admin/oidc.py offers_sign_out": "reads the document of the provider, which is public",
    "work/admin/oidc.py sign_in_methods": "reads the settings, for visitors",
    "work/admin/oidc.py sign_out_address": "returns an address of the provider",
    "work/admin/metrics.py count_response": "counts a status",
    "work/admin/metrics.py render_metrics": "names no user; the door checks the token, or that the caller is an admin",
    "work/tracing.py traced_message": "opens a span",
    "work/tracing.py tracer_of": "returns the tracer of this process",
    "work/admin/people.py identify": "returns the caller of a token",
    "work/admin/registry.py all_models": "models are for all callers",
    "work/admin/sign_in.py sign_in": "has no caller yet",
    "work/admin/sign_in.py sign_in_with_link": "has no caller yet",
    "work/admin/sign_in.py sign_out": "ends the session of the token that it gets",
    "work/admin/usage.py list_prices": "prices are for all callers",
    "work/batches/files.py list_files": "lists by `user_id`, which a door takes from the caller",
    "work/batches/files.py read_file": "reads a file that its caller got by `find_file`",
    "work/batches/manage.py create_batch": "stores a batch, which has its caller",
    "work/batches/manage.py list_batches": "lists by `user_id`, which a door takes from the caller",
    "work/batches/manage.py new_batch_id": "makes an id",
    "work/batches/manage.py owner_of": "names the owner of a batch that its caller got by `find_batch`, or as an admin",
    "work/batches/manage.py waiting_lines": "counts the lines of a batch that its caller got by `find_batch`",
    "work/batches/manage.py totals_of": "counts the lines of a batch that its caller got by `find_batch`",
    "work/batches/messages.py results_file": "finds the output of a batch that its caller got by `find_batch`",
    "work/call.py answer_call": "goes on with a call, which has its caller",
    "work/call.py whole_answer": "goes on with a call, which has its caller",
    "work/inference/caching.py until_stored": "waits for a job of the call itself",
    "work/jobs/query.py departed_callers": "returns times about jobs that its caller may see",
    "work/pipelines/functions.py list_functions": "functions are for all callers",
    "work/reviews/held.py check_current": "checks a job that its caller got by `load_held`",
    "work/reviews/history.py open_votes": "counts votes on a job that its caller got by `load_held`",
    "work/reviews/recommend.py draft_at": "computes a draft for an admin",
    "work/reviews/receipts.py public_key": "the public key is for all callers",
}


def modules(*folders: str) -> dict[str, ast.Module]:
    """Return the syntax trees of the modules in these folders of the source, by path."""
    paths = [path for folder in folders for path in sorted((SOURCE / folder).rglob("*.py"))]
    return {path.relative_to(SOURCE).as_posix(): tree_of(path) for path in paths}


def test_every_route_identifies_its_caller() -> None:
    outside = modules("doors", "dashboard")
    assert [name for module, tree in outside.items() for name in unidentified(module, tree, ANY_CALLER)] == []
    assert unused(ANY_CALLER, outside) == []


def test_every_route_that_is_served_is_one_that_the_check_sees() -> None:
    seen = {function.name for tree in modules("doors", "dashboard").values() for function in handlers(tree)}
    app = cast("Any", _litestar_app())
    served = {(each.fn.__module__, each.fn.__name__) for route in app.routes for each in route.route_handlers}
    assert len(served) > 50
    # Litestar's own: the answer to OPTIONS, static files, and the schema
    own = {name for module, name in served if not module.startswith("litestar.")}
    assert own - seen == set()
    router = make_router(cast("Any", None), Settings())
    doors = [*router._hot.values(), *router._queue.values()]
    assert len(doors) > 5
    assert [door for door in doors if not isinstance(door, AsgiDoor)] == []


def test_every_operation_checks_whose_the_object_is() -> None:
    work = modules("work")
    assert [name for module, tree in work.items() for name in unchecked(module, tree, CHECKED_OTHERWISE)] == []
    assert unused(CHECKED_OTHERWISE, work) == []


def test_only_listed_functions_load_an_object_without_a_check() -> None:
    inside = modules("work", "doors", "dashboard")
    assert [name for module, tree in inside.items() for name in direct_loads(module, tree, LOADERS)] == []
    assert unused(LOADERS, inside) == []


def test_a_route_for_all_callers_is_listed() -> None:
    outside = modules("doors", "dashboard")
    assert [name for module, tree in outside.items() for name in unused_callers(module, tree, FOR_ALL_CALLERS)] == []
    assert unused(FOR_ALL_CALLERS, outside) == []


def test_every_operation_that_a_door_uses_gets_the_caller() -> None:
    outside, work = modules("doors", "dashboard"), modules("work")
    unlisted = {name for module, tree in outside.items() for name in without_caller(module, tree, work, WITHOUT_CALLER)}
    assert unlisted == set()
    used = {name for module, tree in outside.items() for name in without_caller(module, tree, work, {})}
    assert WITHOUT_CALLER.keys() - used == set()


def test_a_door_lists_the_files_and_batches_of_its_caller() -> None:
    assert [line for module, tree in modules("doors").items() for line in foreign_filters(module, tree)] == []


IDENTIFIED = """
@get("/a")
async def show_a(services: InjectedServices, caller: InjectedCaller) -> str: ...
class Door(AsgiDoor):
    async def _route(self, scope, receive, send):
        path = scope["path"]
        caller = await caller_of(self._services, self._door_settings, scope)
        await self._answer(caller)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (", caller: InjectedCaller", ""),
        ("caller: InjectedCaller", "caller: str"),
        ("await caller_of(", "await guess("),
        ("caller = await caller_of(", "caller = None\n        if path: caller = await caller_of("),
        ('path = scope["path"]', "body = await read_body(scope, receive)"),
    ],
)
def test_a_route_without_a_caller_fails_the_check(old: str, new: str) -> None:
    assert old in IDENTIFIED
    assert unidentified("m.py", ast.parse(IDENTIFIED), {}) == []
    (offence,) = unidentified("m.py", ast.parse(IDENTIFIED.replace(old, new)), {})
    assert offence in {"m.py show_a", "m.py _route"}
    assert unidentified("m.py", ast.parse(IDENTIFIED.replace(old, new)), {offence: "a reason"}) == []


CHECKED = """
async def change(services: Services, caller: Caller, job_id: str) -> Job:
    job = await get_job(services, caller, job_id)
    return await services.store.jobs.transition(job_id, request)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("await get_job(services, caller, job_id)", "await load_job(services, job_id)"),
        ("await get_job(services, caller, job_id)", "await get_job(services, ADMIN, job_id)"),
        ("    job = await get", "    await services.store.jobs.cancel(job_id)\n    job = await get"),
        ("job = await get_job(services, caller, job_id)", "job = None"),
    ],
)
def test_an_operation_without_a_check_fails(old: str, new: str) -> None:
    assert unchecked("m.py", ast.parse(CHECKED), {}) == []
    assert old in CHECKED
    planted = ast.parse(CHECKED.replace(old, new))
    assert unchecked("m.py", planted, {}) == ["m.py change: job_id"]
    assert unchecked("m.py", planted, {"m.py change": "a reason"}) == []


@pytest.mark.parametrize("load", ["load_job(services, job_id)", "services.store.jobs.get(job_id)"])
def test_a_load_without_a_check_fails(load: str) -> None:
    tree = ast.parse(f"async def show(services, job_id):\n    return await {load}")
    assert direct_loads("m.py", tree, {}) == ["m.py show"]
    assert direct_loads("m.py", tree, {"m.py show": "a reason"}) == []


def test_a_route_that_forgets_its_caller_fails() -> None:
    tree = ast.parse(IDENTIFIED.replace("-> str: ...", "-> str:\n    return caller.email"))
    assert unused_callers("m.py", tree, {}) == []
    assert unused_callers("m.py", ast.parse(IDENTIFIED), {}) == ["m.py show_a"]
    assert unused_callers("m.py", ast.parse(IDENTIFIED), {"m.py show_a": "a reason"}) == []


@pytest.mark.parametrize("parameters", ["services, caller, a", "services: Services, ask: Ask", "a"])
def test_an_operation_without_a_caller_fails(parameters: str) -> None:
    door = ast.parse("from signoff.work.jobs.a import change")
    work = {"work/jobs/a.py": ast.parse(f"async def change({parameters}): ...")}
    assert without_caller("m.py", door, work, {}) == []
    work = {"work/jobs/a.py": ast.parse("async def change(services, job_id): ...")}
    assert without_caller("m.py", door, work, {}) == ["work/jobs/a.py change"]
    assert without_caller("m.py", door, work, {"work/jobs/a.py change": "a reason"}) == []


@pytest.mark.parametrize(("owner", "lines"), [("caller.user_id", []), ("query['user']", ["m.py 1"])])
def test_a_filter_for_another_user_fails(owner: str, lines: list[str]) -> None:
    assert foreign_filters("m.py", ast.parse(f"FileFilter(user_id={owner})")) == lines


def test_an_exception_for_a_function_that_does_not_exist_fails() -> None:
    assert unused({"m.py show": "a reason", "m.py gone": "a reason"}, {"m.py": ast.parse("def show(): ...")}) == [
        "m.py gone"
    ]
