"""What a model of each size costs, in each type it may compute in: for who chooses one, on the machine that it is for.

    python -m bench.models [--models random:minilm random:base ...] [--dtype float32 bfloat16] [--texts N]

Random weights serve for speed. Each row is a process of its own, so that its memory is told too. What `bench.encoders`
needs is enough.
"""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from bench.encoders import ours, table, take_turns
from bench.roofline import describe
from bench.tweets import RANDOM, SIZES, TWEETS, draw_posts, find_model, load
from encoders.device import resolve_device
from encoders.text import TextEncoder

HEADS = ("type", "weight files", "GFLOP a text", "texts/s best", "median", "memory")


def memory_mib(encoder: TextEncoder) -> float:
    """The most that this process held: of a GPU's memory for tensors, or of the host's."""
    if encoder.device.type == "cuda":
        return torch.cuda.max_memory_allocated(encoder.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(model: str, device: str, dtype: str, texts: list[str], repeats: int) -> list[str]:
    """One row."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as scratch:
        spec, folder = find_model(model, Path(scratch))
        weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        encoder = load(spec, device, dtype)
    gflop = encoder.cost.flops(encoder.tokenise(texts).lengths) / len(texts) / 1e9
    side = take_turns({"ours": lambda: ours(encoder, texts)}, repeats)["ours"]
    told = [f"{weights / 2**20:,.0f} MiB", f"{gflop:.3g}", *side.speeds(len(texts)), f"{memory_mib(encoder):,.0f} MiB"]
    return [model, dtype, *told]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table with the machine."""
    parser = argparse.ArgumentParser(description="what a model of each size costs")
    parser.add_argument("--models", nargs="+", default=[RANDOM + size for size in SIZES], help="as of bench.encoders")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--texts", type=int, default=200, help="posts")
    parser.add_argument("--tweets", type=Path, default=TWEETS, help="a folder with *_text.txt, a tweet a line")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    options = parser.parse_args(argv)
    device = resolve_device(options.device)
    print(describe(device))
    posts = draw_posts(options.tweets, options.texts)
    print(f"{len(posts.texts):,} {posts.source}")
    rows: list[list[str]] = []
    for model in options.models:
        for dtype in options.dtype:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                rows.append(process.apply(measure, (model, str(device), dtype, posts.texts, options.repeats)))
    table("model", HEADS, rows)


if __name__ == "__main__":
    main()
