"""`manyray publish`: a file's posts, with a progress bar for people who look at it."""

from manyray.client import Client
from manyray.progress import show_progress
from manyray.reading import Format, open_posts
from streams import clock
from streams.settings import Settings


def publish_file(
    settings: Settings, path: str, topic: str | None, *, layout: Format | None, id_field: str, text_field: str
) -> str:
    """Publish the posts of a file, or of stdin for `-`, and return the line that sums it up.

    Raises:
        ManyrayError: as `open_posts` and `Client.publish`.
    """
    with Client(settings) as client, open_posts(path, layout, id_field, text_field) as (posts, size):
        began_s = clock.perf_s()
        with show_progress("publish", posts, size) as on_progress:
            count = client.publish(posts, topic, on_progress=on_progress)
        took_s = clock.perf_s() - began_s
    where = topic or settings.posts_topics[0]
    rate = f"{count / max(took_s, 1e-3):,.0f} posts/s"
    return f"published {count:,} post{'' if count == 1 else 's'} to {where} in {took_s:.1f} s ({rate})"
