"""The routes of all pages."""

from litestar import Router

from signoff.dashboard import (
    audit,
    batches,
    bulk,
    cache,
    functions,
    home,
    job,
    jobs,
    library,
    limits,
    model,
    people,
    planted,
    playground,
    policies,
    quality,
    review,
    usage,
)

ROUTES: list[Router] = [
    home.router,
    review.router,
    bulk.router,
    jobs.router,
    job.router,
    batches.router,
    usage.router,
    playground.router,
    library.prompts,
    library.pipelines,
    library.drafts,
    functions.router,
    cache.router,
    model.router,
    policies.router,
    planted.router,
    limits.router,
    quality.router,
    people.router,
    audit.router,
    home.built,
    home.static,
]
