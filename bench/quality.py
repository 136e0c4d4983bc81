"""What the types of numbers keep: classification of tweets, and nearest neighbours, for each way to compute and store.

    python -m bench.quality [--tweets FOLDER] [--model M] [--train N] [--test N]

A logistic regression on vectors of the training tweets of TweetEval, judged by the macro-F1 of the test tweets as the
published scores are; and of each of 1,000 test tweets how many of its ten nearest, by cosine, stay its nearest.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from encoders.encoder import Encoder
from encoders.engine import Engine
from encoders.load import load_encoder
from encoders.model_spec import ModelSpec
from schemas.vectors import Matrix, VectorForm, suited_scale

TWEETS = Path(__file__).parents[2] / "shared" / "data" / "tweeteval"
TASKS = ("hate", "offensive", "emoji")
QUERIES, NEAREST = 1_000, 10
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Some tweets of one task with their labels."""

    texts: list[str]
    labels: Labels

    def sample(self, most: int) -> "Part":
        """So many of them at most, the same each time."""
        chosen = np.sort(np.random.default_rng(0).permutation(len(self.texts))[:most])
        return Part([self.texts[index] for index in chosen], self.labels[chosen])


def read_part(folder: Path, task: str, part: str) -> Part:
    """A task's tweets: tweets hold line separators other than a newline, which str.splitlines would split at."""
    texts = (folder / task / f"{part}_text.txt").read_bytes().decode().split("\n")[:-1]
    labels = (folder / task / f"{part}_labels.txt").read_text().split()
    return Part(texts, np.array(labels, np.int64))


def encode(encoder: Encoder, texts: list[str]) -> Matrix:
    """The vectors of texts."""
    with Engine(encoder, encoder.batch_tokens) as engine:
        futures = [engine.submit(texts[start : start + 1_000]) for start in range(0, len(texts), 1_000)]
        return np.concatenate([future.result().vectors for future in futures])


def macro_f1(train: Matrix, labels: Labels, test: Matrix, truth: Labels) -> float:
    """Of a logistic regression with an L2 penalty, fitted to the end: the mean F1 of the classes, in percent."""
    torch.manual_seed(0)
    rows, wanted = torch.from_numpy(np.array(train)), torch.from_numpy(labels)
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    layer = torch.nn.Linear(rows.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer((rows - mean) / spread), wanted)
        loss = loss + 3e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(step)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        found = layer((torch.from_numpy(np.array(test)) - mean) / spread).argmax(1).numpy()
    scores: list[float] = []
    for label in np.unique(truth):
        hits = int(((found == label) & (truth == label)).sum())
        scores.append(2 * hits / max(1, int((found == label).sum() + (truth == label).sum())))
    return 100 * float(np.mean(scores))


def nearest(vectors: Matrix) -> npt.NDArray[np.int64]:
    """The nearest others of the first vectors."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similar = unit[:QUERIES] @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return np.argpartition(-similar, NEAREST, axis=1)[:, :NEAREST]


def overlap(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """The share of neighbours in common, in percent."""
    return 100 * float(np.mean([len(np.intersect1d(a, b)) / NEAREST for a, b in zip(first, second, strict=True)]))


def ways(dims: int, declared: list[int], calibration: Matrix) -> Iterator[tuple[int, VectorForm]]:
    """Each way to store vectors: a prefix, and a type of numbers."""
    for prefix in [dims, *declared]:
        part = calibration[:, :prefix] / np.linalg.norm(calibration[:, :prefix], axis=1, keepdims=True)
        for form in (
            VectorForm(),
            VectorForm("float16"),
            VectorForm("int8", suited_scale(part)),
            VectorForm("binary"),
        ):
            yield prefix, form


def stored(vectors: Matrix, prefix: int, form: VectorForm) -> Matrix:
    """What a reader gets of vectors that are stored so; a prefix has length 1 again."""
    if prefix < vectors.shape[1]:
        vectors = vectors[:, :prefix] / np.linalg.norm(vectors[:, :prefix], axis=1, keepdims=True)
    return form.unpack(form.pack(vectors).tobytes(), len(vectors))


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description="what types of numbers keep")
    parser.add_argument("--tweets", type=Path, default=TWEETS, help="folder of TweetEval")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--prefixes", type=int, nargs="*", default=[], help="dims to try, trained for or not")
    parser.add_argument("--train", type=int, default=10_000, help="training tweets of a task, at most")
    parser.add_argument("--test", type=int, default=5_000, help="test tweets of a task, at most")
    arguments = parser.parse_args()
    if not arguments.tweets.is_dir():
        raise SystemExit(f"no tweets in {arguments.tweets}: name TweetEval's folder with --tweets")
    parts = {
        task: (
            read_part(arguments.tweets, task, "train").sample(arguments.train),
            read_part(arguments.tweets, task, "test").sample(arguments.test),
        )
        for task in TASKS
    }
    print(
        f"{arguments.model}; " + ", ".join(f"{task}: {len(a.texts)} + {len(b.texts)}" for task, (a, b) in parts.items())
    )
    columns = f"{'computed':>9} {'stored':>8} {'dims':>5} {'bytes':>6} {'cosine':>8} {'overlap@10':>10}"
    print(f"{columns}  macro-F1: {', '.join(TASKS)}")
    exact: dict[str, tuple[Matrix, Matrix]] = {}
    for dtype in ("float32", "bfloat16"):
        encoder = load_encoder(ModelSpec(arguments.model, dtype=dtype))
        found = {task: (encode(encoder, a.texts), encode(encoder, b.texts)) for task, (a, b) in parts.items()}
        exact = exact or found
        corpus = np.concatenate([test for _, test in exact.values()])
        neighbours = nearest(corpus)
        mine = np.concatenate([test for _, test in found.values()])
        for prefix, form in ways(encoder.dims, arguments.prefixes, exact["hate"][0]):
            read = stored(mine, prefix, form)
            scores = [
                macro_f1(stored(train, prefix, form), a.labels, stored(test, prefix, form), b.labels)
                for (train, test), (a, b) in zip(found.values(), parts.values(), strict=True)
            ]
            cosine = "-"
            if prefix == encoder.dims:
                norms = np.linalg.norm(read, axis=1) * np.linalg.norm(corpus, axis=1)
                cosine = f"{float((np.einsum('ij,ij->i', read, corpus) / norms).mean()):.5f}"
            print(
                f"{dtype:>9} {form.output:>8} {prefix:>5} {prefix * form.bits // 8:>6} {cosine:>8} "
                f"{overlap(neighbours, nearest(read)):>9.1f}%  {', '.join(f'{score:.1f}' for score in scores)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
