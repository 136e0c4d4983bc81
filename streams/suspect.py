"""Which content kills its encoder: what the owners of a partition leave to one another when they die. Pure.

A process that a content kills cannot say so. It therefore says before it computes what it begins with, in the metadata
of the partition's committed offset, where whoever comes next finds it.
"""

from dataclasses import dataclass, replace

KILLS_ENCODER = "kills_encoder"
"""Owners of the partition died, one after another, while they computed this content alone."""
ATTEMPTS_MAX = 2
"""Deaths at an offset before the contents of its chunk are tried one by one, the second with that chunk alone: being
wrong costs time only."""
TRIES_MAX = 2
"""Deaths with one content alone before it is rejected: being wrong would cost the post."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of the chunks from a committed offset on, where nothing was committed after it.

    attempts: owners in a row that began from here. until: the offset after the window that was the first to kill; up to
    there chunks are computed one by one.
    content: how many contents of the first chunk are done, each by itself; tries: owners in a row that began with
    the next one. by: who began last, and may be at it; empty if that ended well.
    """

    attempts: int = 0
    until: int = 0
    content: int = 0
    tries: int = 0
    by: str = ""

    @classmethod
    def parse(cls, metadata: str | None, me: str) -> "Suspicion":
        """Read what `str` wrote; nothing is known where there is something else.

        What `me` began killed nobody, as I am here: a failed transaction brought me back.
        """
        try:
            values = dict(pair.split("=") for pair in (metadata or "").split())
            attempts, until, content, tries = (int(values[name]) for name in ("attempts", "until", "content", "tries"))
            found = cls(attempts, until, content, tries, values["by"])
        except (ValueError, KeyError):
            return cls()
        if found.by != me:
            return found
        if found.tries:
            return replace(found, tries=found.tries - 1, by="")
        return replace(found, attempts=found.attempts - 1, by="")

    def __str__(self) -> str:
        return (
            f"attempts={self.attempts} until={self.until} content={self.content} tries={self.tries} by={self.by}"
            if self.attempts
            else ""
        )

    @property
    def is_suspect(self) -> bool:
        """Whether the first chunk is to be computed without others."""
        return self.attempts > 0

    @property
    def is_careful(self) -> bool:
        """Whether the first chunk is to be tried content by content."""
        return self.attempts >= ATTEMPTS_MAX

    @property
    def is_found(self) -> bool:
        """Whether the content that is next killed so many that it is to be rejected."""
        return self.tries >= TRIES_MAX

    def elsewhere(self) -> "Suspicion":
        """The same where the first chunk is not the one it spoke of: retention took that."""
        return replace(self, content=0, tries=0, by="")

    def begun(self, until: int, me: str) -> "Suspicion":
        """I am about to compute a window that ends before offset `until`."""
        return Suspicion(self.attempts + 1, max(self.until, until), by=me)

    def tried(self, me: str) -> "Suspicion":
        """I am about to compute the next content alone."""
        return replace(self, tries=self.tries + 1, by=me)

    def after_content(self) -> "Suspicion":
        """That content is done, or rejected."""
        return replace(self, content=self.content + 1, tries=0, by="")

    def before(self, offset: int) -> "Suspicion | None":
        """All before `offset` is done: what stays, as of the window that killed there may be more; None behind it."""
        return Suspicion(1, self.until) if self.is_suspect and offset < self.until else None
