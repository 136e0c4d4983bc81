"""The encoder's speed without Kafka: beside other ways to the same vectors, beside the device's peak, by its choices.

    python -m bench.encoders [--model minilm] [--texts N] [--dtype float32 bfloat16] [--repeats N]

Needs torch, transformers, tokenizers, safetensors, numpy and this repository; each peer is measured where it is
installed. All times are from texts to vectors on the host, tokenising among them; sides take turns in one run.
"""

import argparse
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter  # noqa: TID251 - the shared clock lives beside Kafka, which is not here

import numpy as np
import torch
from transformers.utils import logging

from bench.encoder_peers import Answer, Setup, Side, graph_of, make_peers
from bench.roofline import GpuMeter, Peak, describe, gemm_peak
from bench.tweets import (
    TWEETS,
    Posts,
    draw_posts,
    find_model,
    load,
    make_padded,
    outline_of,
    texts_between,
    transformer_of,
)
from encoders.backend import import_extra
from encoders.batching import plan_batches, windows
from encoders.device import resolve_device
from encoders.encoder import EncodedBatch
from encoders.engine import IN_FLIGHT_MAX, Engine
from encoders.model_folder import read_model_folder
from encoders.model_spec import ModelSpec
from encoders.packing import pack
from encoders.text import TextEncoder
from schemas.errors import Fatal
from schemas.vectors import Matrix

BUCKETS = ((1, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256), (257, 512))
BUCKET_SHARE = 0.25
"""The tokens of a bucket's texts beside those of all posts: enough for more than a window of the default posts."""
POLICIES = {
    "cpu": (256, 512, 1_024, 2_048, 4_096, 8_192),
    "cuda": (4_096, 8_192, 16_384, 32_768, 65_536, 131_072),
}
FEW_POSTS = 100
TRIED = 64
"""Posts on which each peer is warmed up."""
PATIENCE = 3.0
"""A side that twice took so many times as long as the fastest is not run again: it is not the one to beat."""
COSINE_MIN = 0.99
"""Mean cosine with ours: who gives other vectors is not the one to beat either."""
HOST_TEXTS_MAX = 20_000
"""Enough to tell their cost, and few enough for one thread."""
BACKEND_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
METERED_S = 5.0
"""At least, as NVML's shares are of up to a second each."""

ONE_WINDOW = "ours, one window"
"""All posts sorted together, as `encode-file` has them and every peer; ours else are windows of the pipeline's size."""

Run = Callable[[], Answer]


@dataclass(slots=True)
class Measured:
    """Seconds of each run of a side, and what it gave first."""

    answer: Answer
    seconds: list[float] = field(default_factory=list[float])

    @property
    def best_s(self) -> float:
        """Of the fastest run."""
        return min(self.seconds)

    def beside(self, peer: "Measured") -> str:
        """How many times as fast as a peer, by the best of runs and by the median of pairs."""
        ratios = [theirs / our for our, theirs in zip(self.seconds, peer.seconds, strict=False)]
        best = f"{peer.best_s / self.best_s:.2f} by the best of runs"
        return f"{best}, {median(ratios):.2f} by the median of {len(ratios)} pairs"

    def speeds(self, texts: int) -> list[str]:
        """Best and median, texts a second, as cells."""
        return [f"{texts / self.best_s:,.0f}", f"{texts / median(self.seconds):,.0f}"]


def encode(encoder: TextEncoder, texts: int, parts: Iterable[Sequence[str]], batch_tokens: int) -> Answer:
    """So many texts in windows through the engine, as many in flight as the pipeline has."""
    vectors = np.empty((texts, encoder.dims), np.float32)
    pending: deque[Future[EncodedBatch]] = deque()
    start = computed = 0

    def take() -> None:
        nonlocal start, computed
        batch = pending.popleft().result()
        if batch.failed:
            raise SystemExit(f"{len(batch.failed)} texts have no vector, as {next(iter(batch.failed.values()))}")
        vectors[start : start + len(batch.vectors)] = batch.vectors
        start, computed = start + len(batch.vectors), computed + batch.padded_tokens

    with Engine(encoder, batch_tokens) as engine:
        for part in parts:
            pending.append(engine.submit(part))
            if len(pending) == IN_FLIGHT_MAX:
                take()
        while pending:
            take()
    return Answer(vectors, computed)


def ours(encoder: TextEncoder, texts: list[str], batch_tokens: int | None = None) -> Answer:
    """Windows as the pipeline makes them of batches of so many tokens."""
    budget = batch_tokens or encoder.batch_tokens
    return encode(encoder, len(texts), cut(encoder, texts, budget), budget)


def cut(encoder: TextEncoder, texts: list[str], batch_tokens: int) -> Iterator[Sequence[str]]:
    """Windows of the engine's size for batches of so many tokens."""
    with Engine(encoder, batch_tokens) as engine:
        return windows(texts, engine.window_tokens)


def on_backends(spec: ModelSpec, setup: Setup) -> tuple[list[Side], list[str]]:
    """Ours with each backend but torch; and of each that cannot be measured why, in a line."""
    sides: list[Side] = []
    left_out: list[str] = []
    for backend, package in BACKEND_NAMES.items():
        name = f"ours, {package}"
        try:
            import_extra(backend, backend)
            encoder = load(replace(spec, backend=backend, graph=str(graph_of(setup))), "cpu", setup.dtype)
        except Fatal as error:
            left_out.append(f"not measured: {name}: {error}")
        else:
            sides.append(Side(name, lambda texts, encoder=encoder: ours(encoder, texts)))
    return sides, left_out


def take_turns(sides: Mapping[str, Run], repeats: int, patience: float = math.inf) -> dict[str, Measured]:
    """Run all sides once, then in the opposite order, and so on; those much slower than the fastest only twice."""
    measured: dict[str, Measured] = {}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
            if repeat > 1 and measured[name].best_s > patience * min(one.best_s for one in measured.values()):
                continue
            start = perf_counter()
            answer = sides[name]()
            took_s = perf_counter() - start
            measured.setdefault(name, Measured(answer)).seconds.append(took_s)
    return measured


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns, two spaces or more between them."""
    lines = [(title, *heads), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for name, *cells in lines:
        print("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]), flush=True)


def cosines(vectors: Matrix, expected: Matrix) -> Matrix:
    """Of each row with its like, which may be a prefix (Matryoshka)."""
    vectors = vectors[:, : expected.shape[1]]
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, expected))
    return np.einsum("ij,ij->i", one, other)


@dataclass(slots=True)
class Bench:
    """One model in one dtype, and all that is measured of it. peak: found by `sides`, so that comes first."""

    encoder: TextEncoder
    posts: Posts
    repeats: int
    peak: Peak = field(init=False)

    def sides(self, others: list[Side]) -> str:
        """Ours and all others on the same texts; returns the line by which a target is read off."""
        texts = self.posts.texts
        lengths = self.encoder.tokenise(texts).lengths
        tokens = int(lengths.sum())
        runs: dict[str, Run] = {
            "ours": lambda: ours(self.encoder, texts),
            ONE_WINDOW: lambda: encode(self.encoder, len(texts), [texts], self.encoder.batch_tokens),
        }
        runs |= {side.name: (lambda side=side: side.encode(texts)) for side in others}
        peak = self._measure_peak()
        measured = take_turns(runs, self.repeats, PATIENCE)
        # Again, as who else is on this machine may have slowed the first one down.
        self.peak = max(peak, self._measure_peak(), key=lambda peak: peak.flops_per_s)
        mine = measured["ours"]
        peers: dict[str, Measured] = {}
        rows: list[list[str]] = []
        for name, side in measured.items():
            padding = "-" if side.answer.computed is None else f"{1 - tokens / side.answer.computed:.1%}"
            same = cosines(side.answer.vectors, mine.answer.vectors)
            if not name.startswith("ours") and same.mean() >= COSINE_MIN:
                peers[name] = side
            told = [*side.speeds(len(texts)), f"{tokens / side.best_s:,.0f}", f"{mine.best_s / side.best_s:.2f}"]
            rows.append([name, str(len(side.seconds)), *told, f"{same.min():.6f}", f"{same.mean():.6f}", padding])
        heads = ("runs", "texts/s best", "median", "tokens/s", "of ours", "cosine min", "mean", "padding")
        table("side", heads, rows)
        flops = self.encoder.cost.flops(lengths)
        print(f"peak: {self.peak.flops_per_s / 1e9:,.0f} GFLOP/s ({self.peak.how})")
        reached, share = self._reached(flops, mine)
        print(f"ours: {flops / len(texts) / 1e9:.3g} GFLOP a text, {reached}, {share} of the peak")
        if self.encoder.device.type != "cpu":
            print(self._metered())
        if not peers:
            return "beside the best peer: none was measured"
        best = min(peers, key=lambda name: peers[name].best_s)
        told = [f"{name} {measured[name].beside(peers[best])}" for name in ("ours", ONE_WINDOW)]
        return f"beside the best peer ({best}): {'; '.join(told)}"

    def buckets(self) -> None:
        """Ours by the length of texts."""
        encoder = self.encoder

        def lengths_of(texts: list[str]) -> np.ndarray:
            return encoder.tokenise(texts).lengths

        tokens = int(BUCKET_SHARE * lengths_of(self.posts.texts).sum())
        texts: dict[str, list[str]] = {}
        for least, most in BUCKETS:
            if found := texts_between(least, most, tokens, self.posts.texts, lengths_of):
                texts[f"{least}-{most}"] = found
        runs: dict[str, Run] = {name: (lambda found=found: ours(encoder, found)) for name, found in texts.items()}
        rows: list[list[str]] = []
        for name, side in take_turns(runs, self.repeats).items():
            lengths = lengths_of(texts[name])
            told = [*side.speeds(len(lengths)), f"{lengths.sum() / side.best_s:,.0f}"]
            rows.append([name, str(len(lengths)), *told, *self._reached(self.encoder.cost.flops(lengths), side)])
        table("tokens", ("texts", "texts/s best", "median", "tokens/s", "reached", "of peak"), rows)
        missing = [f"{least}-{most}" for least, most in BUCKETS if f"{least}-{most}" not in texts]
        if missing:
            print(f"not measured: {', '.join(missing)} tokens: texts are cut at {encoder.max_tokens}")

    def policies(self, padded: TextEncoder) -> None:
        """Ours by the tokens of a batch, packed and padded, and by how many posts are sorted together."""
        texts, count = self.posts.texts, len(self.posts.texts)
        encoder, default = self.encoder, self.encoder.batch_tokens
        few = [texts[start : start + FEW_POSTS] for start in range(0, count, FEW_POSTS)]
        runs: dict[str, Run] = {
            "default": lambda: ours(encoder, texts),
            f"windows of {FEW_POSTS} posts": lambda: encode(encoder, count, few, default),
        }
        kinds = {"packed": encoder, "padded": padded} if transformer_of(encoder).is_packed else {"padded": padded}
        for kind, each in kinds.items():
            for budget in POLICIES[encoder.device.type]:
                runs[f"{kind} {budget}"] = lambda each=each, budget=budget: ours(each, texts, budget)
        measured = take_turns(runs, self.repeats, PATIENCE)
        tokens = int(encoder.tokenise(texts).lengths.sum())
        rows: list[list[str]] = []
        for name, side in measured.items():
            padding = f"{1 - tokens / (side.answer.computed or tokens):.1%}"
            of_default = f"{measured['default'].best_s / side.best_s:.2f}"
            rows.append([name, str(len(side.seconds)), *side.speeds(count), of_default, padding])
        table("batch_tokens", ("runs", "texts/s best", "median", "of default", "padding"), rows)

    def host_costs(self) -> None:
        """CPU time of one thread, which a fast device waits for."""
        encoder, texts = self.encoder, self.posts.texts[:HOST_TEXTS_MAX]
        parts = list(cut(encoder, texts, encoder.batch_tokens))
        padded, pad_position = not transformer_of(encoder).is_packed, outline_of(encoder).pad_position
        variable = "TOKENIZERS_PARALLELISM"  # the tokenizer reads it at each call
        before = os.environ.get(variable)
        costs_s: list[tuple[float, float]] = []
        for _ in range(self.repeats):
            os.environ[variable] = "false"
            start = time.thread_time()
            tokens = [encoder.tokenise(part) for part in parts]
            tokenised = time.thread_time()
            for part in tokens:
                plan = plan_batches(part.lengths, encoder.batch_tokens, padded=padded, workers=encoder.workers)
                pack(part, np.concatenate(plan), pad_position, encoder.device)
            costs_s.append((tokenised - start, time.thread_time() - tokenised))
            os.environ.pop(variable) if before is None else os.environ.update({variable: before})
        tokenising, packing = (min(cost) / len(texts) * 1e6 for cost in zip(*costs_s, strict=True))
        print(f"\nhost: tokenising {tokenising:.1f} us a text, packing {packing:.1f} us a text, of one thread")

    def _measure_peak(self) -> Peak:
        encoder = self.encoder
        return gemm_peak(encoder.device, encoder.dtype, encoder.cost, encoder.batch_tokens)

    def _reached(self, flops: float, side: Measured) -> list[str]:
        """FLOP a second and their share of the peak, as cells."""
        per_s = flops / side.best_s
        return [f"{per_s / 1e9:,.0f} GFLOP/s", f"{per_s / self.peak.flops_per_s:.0%}"]

    def _metered(self) -> str:
        runs, start = 0, perf_counter()
        with GpuMeter(self.encoder.device) as meter:
            while perf_counter() - start < METERED_S:
                ours(self.encoder, self.posts.texts)
                runs += 1
        return meter.say(runs * len(self.posts.texts))


def main(argv: Sequence[str] | None = None) -> None:
    """Print figures with the machine: for each dtype four tables, and at the end ours beside the best peer."""
    parser = argparse.ArgumentParser(description="the encoder's speed without Kafka")
    parser.add_argument("--model", default="minilm", help="as the setting model, or random:<size>; minilm if unset")
    parser.add_argument("--texts", type=int, help="posts; 2,000 on a CPU and 200,000 on a GPU if unset")
    parser.add_argument("--tweets", type=Path, default=TWEETS, help="a folder with *_text.txt, a tweet a line")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="the device's usual one if unset")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, in turn")
    parser.add_argument("--tei", metavar="URL", help="a text-embeddings-inference that serves this model")
    parser.add_argument("--infinity", metavar="URL", help="an infinity that serves this model")
    options = parser.parse_args(argv)
    device = resolve_device(options.device)
    is_cpu = device.type == "cpu"
    logging.disable_progress_bar()
    print(describe(device))
    posts = draw_posts(options.tweets, options.texts or (2_000 if is_cpu else 200_000))
    told: list[str] = []
    with tempfile.TemporaryDirectory(prefix="manyray-bench-") as scratch:
        spec, folder = find_model(options.model, Path(scratch))
        for dtype in options.dtype or ["float32" if is_cpu else "bfloat16"]:
            encoder = load(spec, str(device), dtype)
            found, cores = read_model_folder(folder), torch.get_num_threads()
            setup = Setup(encoder, folder, found, dtype, cores, Path(scratch), options.tei, options.infinity)
            print(f"\n{options.model} in {dtype} on {device}: batches of {encoder.batch_tokens:,} tokens")
            tokens = int(encoder.tokenise(posts.texts).lengths.sum())
            print(f"{len(posts.texts):,} {posts.source}: {tokens:,} tokens, {tokens / len(posts.texts):.1f} a text")
            bench = Bench(encoder, posts, options.repeats)
            backends, without = on_backends(spec, setup) if is_cpu else ([], [])
            peers, left_out = make_peers(setup, posts.texts[:TRIED])
            print(*without, *left_out, sep="\n")
            told.append(f"{dtype}: {bench.sides([*backends, *peers])}")
            del backends, peers  # and their memory
            bench.buckets()
            bench.policies(make_padded(load(spec, str(device), dtype)))
            bench.host_costs()
    print()
    print(*told, sep="\n")


if __name__ == "__main__":
    main()
