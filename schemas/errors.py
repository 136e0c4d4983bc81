"""The three ways in which work can fail; every error of Manyray is one of them.

A message names the setting or the record, its value, and the remedy. It never holds a post's text or a secret.
"""


class ManyrayError(Exception):
    """The root of Manyray's errors: catch it to catch them all."""


class Retry(ManyrayError):
    """The same work may succeed if it is tried again: a broker that is away, a transaction that was aborted."""


class Reject(ManyrayError):
    """One record is bad, and stays bad: it goes to the `rejected` topic, and its neighbours go on.

    `reason` is one of `schemas.post.REASONS`, or of `streams.submitted.DETAILS`, a metric's label; `detail` says more,
    without the post's text.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Fatal(ManyrayError):
    """The process cannot go on: it says why in one line, and exits with a code that is not 0."""
