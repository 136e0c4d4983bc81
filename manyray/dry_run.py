"""`manyray replay --dry-run`: what a replay would cost, from a sample of its range. No post goes anywhere."""

from rich.table import Table

from manyray.replaying import Wanted, find_served, plan_job
from manyray.sampling import SAMPLE_OFFSETS, read_sample, spread
from manyray.trial import Trial, try_encoder
from streams.control import topics_of
from streams.estimate import Estimate, Sampled, estimate
from streams.jobs import Job
from streams.probe import count_hits
from streams.settings import Settings

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def dry_run(settings: Settings, wanted: Wanted) -> Table:
    """Sample what would be replayed, ask dedup what of it is known, compute some of it here, and scale that up.

    Raises:
        Fatal: as `plan_job`; or the model cannot be loaded.
    """
    job = plan_job(settings, wanted)
    served = find_served(settings, wanted.ray)
    topics = topics_of(settings, served)
    seen = read_sample(settings, job, spread(job.ranges, SAMPLE_OFFSETS))
    cached = count_hits(settings, topics, seen.contents) if seen.contents else None
    trial = try_encoder(served.settings(settings), seen.texts)
    sampled = Sampled(
        offsets=seen.offsets,
        posts=seen.posts,
        rejected=seen.rejected,
        tombstones=seen.tombstones,
        filtered=seen.filtered,
        contents=tuple(seen.contents.values()),
        cached=cached,
        tokens=trial.tokens_per_text,
        post_bytes=seen.post_bytes / max(1, seen.posts),
        vector_bytes=topics.form.bits * trial.dims // 8,
    )
    return _table(job, sampled, estimate(sampled, job.offsets), trial)


def _table(job: Job, sampled: Sampled, found: Estimate, trial: Trial) -> Table:
    is_whole = sampled.offsets >= job.offsets
    what_follows = "all, so posts are exact" if is_whole else "what follows is scaled up from them"
    others = f"{found.rejected:,} rejected, {found.tombstones:,} tombstones, {found.filtered:,} filtered out"
    caution = "" if is_whole else f", a guess between {found.distinct_min:,} and {found.distinct_max:,}"
    cached = "not known, as no dedup answered" if found.cached is None else f"{found.cached:,} of these"
    table = Table.grid(padding=(0, 2))
    table.add_row("sample", f"{sampled.offsets:,} of {job.offsets:,} offsets of {job.topic}: {what_follows}")
    table.add_row("posts", f"{found.posts:,}; {others}")
    table.add_row("distinct", f"{found.distinct:,}{caution}")
    table.add_row("cached", cached)
    table.add_row("tokens", f"{found.tokens:,} of the {found.misses:,} to be computed")
    table.add_row("encoder", _seconds(job, found, trial))
    table.add_row("energy", _energy(found, trial))
    table.add_row("written", f"{_bytes(found.bytes_written)} on all topics, before compression and replicas")
    return table


def _seconds(job: Job, found: Estimate, trial: Trial) -> str:
    speed = f"{trial.tokens_per_s:,.0f} tokens/s on {trial.device}"
    alone = f"{found.seconds(trial.tokens_per_s):,.0f} s of one like this machine's ({speed})"
    shared = f"; {found.seconds(trial.tokens_per_s, job.share):,.0f} s with {job.share:.0%} of it" if job.share else ""
    return alone + shared


def _energy(found: Estimate, trial: Trial) -> str:
    if trial.joules_per_token is not None:
        return f"{found.tokens * trial.joules_per_token / 3_600:,.1f} Wh"
    hours = found.seconds(trial.tokens_per_s) / 3_600
    return f"not known, as no meter tells: {100 * hours:,.1f} Wh for every 100 W that the encoder's machine takes"


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1_000 and unit < len(_UNITS) - 1:
        count, unit = count / 1_000, unit + 1
    return f"{count:,.{1 if unit else 0}f} {_UNITS[unit]}"
