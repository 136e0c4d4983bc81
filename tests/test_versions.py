"""Laws of a ray's versions: what may become of them, and what a reader of the bare name has still to read. Pure."""

import pytest

from manyray.epochs import Epoch, epochs_of, first_open
from schemas.errors import Fatal
from schemas.internal_pb2 import Standing
from streams.versions import (
    PROMOTIONS_MAX,
    VERSIONS_MAX,
    Ray,
    Served,
    add,
    begin_ray,
    changed_standings,
    deprecate,
    note_ends,
    promote,
    retire,
    shadow,
)

ONE, TWO = Served("one", "minilm", 1), Served("two", "hash", 2, share=0.5)
RAY = add(begin_ray(ONE), TWO)


def test_a_new_version_is_a_shadow():
    """The bare name means the other one, and the share is as it was asked for."""
    assert (RAY.promoted, RAY.names) == ("one", ("one", "two"))
    assert [RAY.is_shadow(version) for version in RAY.names] == [False, True]
    assert RAY.standing("two") == Standing(version="two", share=0.5)
    assert RAY.standing("one") == Standing(version="one", share=1, promoted=True)


def test_a_promotion_changes_both_standings_at_once():
    """The new one embeds every post from there on; the one before goes on, and is no shadow."""
    after = promote(RAY, "two", 5, {0: 7})
    assert changed_standings(RAY, after) == [
        Standing(version="one", share=1),
        Standing(version="two", share=1, promoted=True),
    ]
    assert not after.is_shadow("one")
    back = promote(after, "one", 6, {})
    assert back.promoted == "one"
    assert back.find("two").share == 1


def test_what_is_deprecated_says_so_until_it_is_promoted():
    """Its records carry the time; 0 takes it back, and so does promoting it."""
    gone = deprecate(RAY, "two", 99)
    assert changed_standings(RAY, gone) == [Standing(version="two", share=0.5, retires_ms=99)]
    assert deprecate(gone, "two", 0) == RAY
    assert promote(gone, "two", 5, {}).find("two").retires_ms == 0


def test_adding_and_retiring_tell_posts_nothing():
    """Of a version that was not there, or is no longer, no chunk can say what it is."""
    assert changed_standings(begin_ray(ONE), RAY) == []
    assert changed_standings(RAY, retire(RAY, "two")) == []
    assert retire(RAY, "two").names == ("one",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: add(RAY, TWO), "served already: change its share by `manyray rays shadow`"),
        (lambda: add(RAY, Served("three", "hash", 3, share=1.5)), "--share 1.5 is none"),
        (lambda: shadow(RAY, "two", float("nan")), "--share nan is none"),
        (lambda: shadow(RAY, "one", 0.5), "the promoted one, which embeds every post: promote another"),
        (lambda: promote(RAY, "one", 5, {}), "the promoted one already: to go back, promote"),
        (lambda: promote(RAY, "none", 5, {}), "there are one, two; add one by `manyray rays add`"),
        (lambda: deprecate(RAY, "one", 5), "promote another one first, by `manyray rays promote`"),
        (lambda: retire(RAY, "one"), "promote another one first, by `manyray rays promote`"),
    ],
)
def test_every_refusal_names_the_remedy(change, said):
    """In one line."""
    with pytest.raises(Fatal) as caught:
        change()
    assert said in str(caught.value)


def test_versions_and_promotions_are_bounded():
    """The last version that fits does, and the oldest promotions are forgotten."""
    ray = begin_ray(ONE)
    for number in range(VERSIONS_MAX - 1):
        ray = add(ray, Served(str(number), "hash", number))
    with pytest.raises(Fatal, match="which is the most: retire one by `manyray rays retire`"):
        add(ray, TWO)
    for number in range(2 * PROMOTIONS_MAX):
        ray = promote(ray, str(number % 2), number, {})
    assert len(ray.promotions) == PROMOTIONS_MAX
    assert ray.promotions[-1].at_ms == 2 * PROMOTIONS_MAX - 1


def test_ends_are_noted_once():
    """Of the promotion that was made then, whatever was promoted since."""
    ray = promote(promote(RAY, "two", 5, {}), "one", 6, {})
    noted = note_ends(ray, 5, {0: 3})
    assert [one.ends for one in noted.promotions] == [None, {0: 3}, None]
    assert note_ends(noted, 5, {0: 9}) == noted


def test_the_epochs_of_a_name_follow_its_promotions():
    """Each begins where its version did and ends where the next promotion says; those of retired versions are gone."""
    ray = note_ends(promote(RAY, "two", 5, {0: 7}), 5, {0: 20})
    first, second = epochs_of("ray", ray)
    assert first == Epoch("one", "embeddings.ray.one", {}, {0: 20})
    assert second == Epoch("two", "embeddings.ray.two", {0: 7}, None)
    assert epochs_of("ray", retire(ray, "one")) == (second,)


@pytest.mark.parametrize(
    ("committed", "expected"),
    [
        ({("a", 0): -1, ("a", 1): -1, ("b", 0): -1, ("b", 1): -1}, 0),
        ({("a", 0): 5, ("a", 1): 2, ("b", 0): -1, ("b", 1): -1}, 0),
        ({("a", 0): 5, ("a", 1): 3, ("b", 0): -1, ("b", 1): -1}, 1),
        ({("a", 0): 5, ("a", 1): 3, ("b", 0): 9, ("b", 1): 9}, 2),
        ({("a", 0): 50, ("a", 1): 30, ("b", 0): 90, ("b", 1): 90}, 2),
        ({("a", 0): -1, ("a", 1): -1, ("b", 0): 4, ("b", 1): -1}, 1),
    ],
)
def test_a_group_goes_on_in_the_first_epoch_that_it_has_not_read(committed, expected):
    """Also after a rollback, whose epoch has the topic of the first one; the last epoch has no end."""
    ends = {0: 5, 1: 3}
    epochs = [
        Epoch("1", "a", {}, ends),
        Epoch("2", "b", {0: 1, 1: 1}, {0: 9, 1: 9}),
        Epoch("1", "a", {0: 6, 1: 6}, None),
    ]
    assert first_open(epochs, committed) == expected


def test_no_ray_is_promoted_before_it_is_begun():
    """An empty control topic has no version."""
    assert (Ray().promoted, Ray().names) == ("", ())
