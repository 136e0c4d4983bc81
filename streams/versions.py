"""A ray's versions, and what each is to it: the state that the control topic holds, and how it may change. Pure."""

import math
from collections.abc import Iterable
from typing import Self

import msgspec

from encoders.version import VersionSpec
from schemas.errors import Fatal
from schemas.internal_pb2 import Standing
from schemas.vectors import VectorForm
from streams.settings import Settings
from streams.version import place_of

VERSIONS_MAX = 8
"""Served at the same time: each has a thread, tables and a model of its own in every role's process."""
PROMOTIONS_MAX = 100
"""Remembered: readers that are further behind begin at the oldest."""


class Served(msgspec.Struct, frozen=True):
    """A version that roles serve: the settings that name its encoder, the form of its vectors, what it is to its ray.

    share: of the contents of live posts, those it embeds, in [0, 1]. retires_ms: when it is to be retired, if it is
    deprecated.
    """

    version: str
    model: str
    added_ms: int
    revision: str = ""
    dtype: str = "auto"
    max_tokens: int | None = None
    output: str = "float32"
    scale: float = 0.0
    share: float = 1.0
    retires_ms: int = 0

    @classmethod
    def of(cls, settings: Settings, spec: VersionSpec, now_ms: int, share: float = 1.0) -> Self:
        """The version of these settings, whose spec is given."""
        return cls(
            spec.version,
            place_of(settings.model, settings.revision),
            now_ms,
            settings.revision,
            settings.dtype,
            settings.max_tokens,
            spec.form.output,
            spec.form.scale,
            share,
        )

    @property
    def form(self) -> VectorForm:
        """How its vectors are stored."""
        return VectorForm(self.output, self.scale)

    def settings(self, others: Settings) -> Settings:
        """Settings that name its encoder, and are those others' in all else."""
        return others.model_copy(
            update={name: getattr(self, name) for name in ("model", "revision", "dtype", "max_tokens")}
        )


class Promotion(msgspec.Struct, frozen=True):
    """When the bare ray name came to mean a version, and where in the embeddings that was.

    starts: by partition of its topic, an offset before which none of its embeddings is one of the bare name.
    ends: by partition of the topic of the one before, an offset from which on none of its is; None until they are out.
    """

    version: str
    at_ms: int
    starts: dict[int, int] = {}
    ends: dict[int, int] | None = None


class Ray(msgspec.Struct, frozen=True):
    """The versions of a ray that are served, in the order in which they were added, and what its bare name meant when,
    the oldest first.
    """

    versions: tuple[Served, ...] = ()
    promotions: tuple[Promotion, ...] = ()
    mirrored: bool = False
    """Whether the embeddings of the bare name are in a topic of their own too."""

    @property
    def promoted(self) -> str:
        """The version that the bare name means; empty before there is one."""
        return self.promotions[-1].version if self.promotions else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The versions that are served."""
        return tuple(served.version for served in self.versions)

    @property
    def planned(self) -> tuple[str, ...]:
        """Whose topics there are to be, as `plan_topics` takes it."""
        return (*self.names, "") if self.mirrored else self.names

    @property
    def open_promotions(self) -> list[tuple[Promotion, str]]:
        """Promotions of which it is not noted where the version before ends, and that version, if it is served."""
        pairs = zip(self.promotions, self.promotions[1:], strict=False)
        return [(one, before.version) for before, one in pairs if one.ends is None and before.version in self.names]

    def is_shadow(self, version: str) -> bool:
        """Whether the bare name never meant a version: nobody waits for its embeddings."""
        return version not in {promotion.version for promotion in self.promotions}

    def find(self, version: str) -> Served:
        """One that is served.

        Raises:
            Fatal: it is not.
        """
        for served in self.versions:
            if served.version == version:
                return served
        raise Fatal(
            f"there is no version {version} of this ray: there are {', '.join(self.names)}; "
            "add one by `manyray rays add`"
        )

    def standing(self, version: str) -> Standing:
        """What a version is to the ray."""
        served = self.find(version)
        promoted = version == self.promoted
        return Standing(
            version=version,
            share=served.share,
            promoted=promoted,
            retires_ms=served.retires_ms,
            mirrored=promoted and self.mirrored,
        )

    def with_(self, changed: Served) -> "Ray":
        """With another state of one of its versions."""
        return msgspec.structs.replace(
            self, versions=tuple(changed if one.version == changed.version else one for one in self.versions)
        )


def changed_standings(before: Ray, after: Ray) -> list[Standing]:
    """What versions are now that were something else."""
    return [
        standing
        for version in after.names
        if version in before.names and (standing := after.standing(version)) != before.standing(version)
    ]


def begin_ray(served: Served) -> Ray:
    """A new ray, of one version."""
    return Ray((served,), (Promotion(served.version, served.added_ms),))


def add(ray: Ray, served: Served) -> Ray:
    """One more version, which embeds the share of the contents of live posts that it says.

    Raises:
        Fatal: it is one of them already, or there are too many.
    """
    if served.version in ray.names:
        raise Fatal(
            f"version {served.version} is served already: change its share by `manyray rays shadow`, or choose another "
            "model"
        )
    if len(ray.versions) >= VERSIONS_MAX:
        raise Fatal(f"{len(ray.versions)} versions are served, which is the most: retire one by `manyray rays retire`")
    _check_share(served.share)
    return msgspec.structs.replace(ray, versions=(*ray.versions, served))


def shadow(ray: Ray, version: str, share: float) -> Ray:
    """Let a version embed another share of the contents of live posts.

    Raises:
        Fatal: there is none of that name, it is the promoted one, or the share is none.
    """
    served = ray.find(version)
    _check_share(share)
    if version == ray.promoted:
        raise Fatal(f"version {version} is the promoted one, which embeds every post: promote another one first")
    return ray.with_(msgspec.structs.replace(served, share=share))


def promote(ray: Ray, version: str, at_ms: int, starts: dict[int, int]) -> Ray:
    """Let the bare name mean another version, which embeds every post from here on.

    Raises:
        Fatal: there is none of that name, or it is the promoted one.
    """
    served = ray.find(version)
    if version == ray.promoted:
        raise Fatal(f"version {version} is the promoted one already: to go back, promote the one before it")
    # One that is promoted is not on its way out.
    changed = ray.with_(msgspec.structs.replace(served, share=1.0, retires_ms=0))
    promotions = (*ray.promotions, Promotion(version, at_ms, starts))[-PROMOTIONS_MAX:]
    return msgspec.structs.replace(changed, promotions=promotions)


def mirror(ray: Ray, *, on: bool) -> Ray:
    """Let the embeddings of the bare name go to a topic of their own too, or no longer."""
    return msgspec.structs.replace(ray, mirrored=on)


def note_ends(ray: Ray, at_ms: int, ends: dict[int, int]) -> Ray:
    """Note where the embeddings of the bare name ended in the version before, of the promotion made at that time."""
    return msgspec.structs.replace(
        ray,
        promotions=tuple(
            msgspec.structs.replace(one, ends=ends) if one.at_ms == at_ms and one.ends is None else one
            for one in ray.promotions
        ),
    )


def deprecate(ray: Ray, version: str, retires_ms: int) -> Ray:
    """Say in a version's records when it is to be retired; 0 takes that back.

    Raises:
        Fatal: there is none of that name, or it is the promoted one.
    """
    served = ray.find(version)
    if version == ray.promoted:
        raise Fatal(f"version {version} is the promoted one: promote another one first, by `manyray rays promote`")
    return ray.with_(msgspec.structs.replace(served, retires_ms=retires_ms))


def retire(ray: Ray, version: str) -> Ray:
    """Serve a version no longer.

    Raises:
        Fatal: there is none of that name, or it is the promoted one.
    """
    served = ray.find(version)
    if version == ray.promoted:
        raise Fatal(f"version {version} is the promoted one: promote another one first, by `manyray rays promote`")
    return msgspec.structs.replace(ray, versions=_without(ray.versions, served))


def _without(versions: Iterable[Served], served: Served) -> tuple[Served, ...]:
    return tuple(one for one in versions if one is not served)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1 or math.isnan(share):
        raise Fatal(f"--share {share} is none: it is of the contents of live posts, from 0 to 1")
