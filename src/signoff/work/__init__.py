"""Operations of the product. Read them in the order of a request: admit, submit or call, perform, record, await_review.

Every operation takes `Services` first. Operations on single things are in the subpackages.
"""
