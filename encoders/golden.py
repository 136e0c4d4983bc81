"""A version's own answer to a few texts: who gives another one has other weights, or computes them wrongly.

A digest of rounded numbers would change with the last bit of one of them, which differs among processors. So each
number is rounded to its sign, and a few may differ: the share of signs that two vectors do not have in common is their
angle over pi (M. Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002).
"""

import numpy as np

from encoders.encoder import Encoder
from encoders.model_spec import ModelSpec
from schemas.errors import Fatal
from schemas.vectors import Matrix, VectorForm

TEXTS = (
    "A cat sleeps on the warm stones.",
    "income tax is due in may",
    "@user check https://example.org/a?b=c #mood 😀",
    "Straße, naïve, ÅNGSTRÖM",
    "你好世界",
    "one two three four five six seven eight nine ten " * 8,
)
_NUMBERS = 256
"""Of each vector: enough to tell, and short to write down."""
_TOKENS = 64
"""Where the longest is cut before that, its vector is another."""
SHARE_MAX = 0.03
"""bfloat16 differs from float32 in less than 1 % of signs, a cosine of 0.99 is 4.5 %, other vectors are up to half."""
_MINILM = (
    "f4cf7fac21c290a7cb0827b7dde277808d501f06c4fda01a838d875b347a35da",
    "aa67ed9b4e7a40c0605d43a4bcf2ba5aef805a5f9ca381003d7b8f69b345a744",
    "5adf3301fc34087488da1ef91cb9ae0af51c437e2ee3b5dc0986944d02e6956f",
    "d222f6fbbd1704690e53cda4b550225e60fbdd6d94ae97570ddc48519753d260",
    "6eec535d3b2587a3f0bda49d1c3c3c82451031a60f8e16c909cf6c8d596ff968",
    "e6084f0bcfb812be47d131141e3a63f7286fce4d8fb38ab5a8b9aa285babc12c",
)


def sketch(encoder: Encoder) -> tuple[str, ...]:
    """The signs of the first numbers of the vectors of `TEXTS`, hexadecimal, a string a text."""
    return tuple(row.tobytes().hex() for row in _signs(_vectors(encoder)))


def golden_of(spec: ModelSpec) -> tuple[str, ...]:
    """What a spec says of itself, and what is known of the carried model as it is."""
    plain = spec.model == "minilm" and spec == ModelSpec(
        dtype=spec.dtype, max_tokens=spec.max_tokens, output=spec.output, scale=spec.scale
    )
    is_whole = (spec.max_tokens or _TOKENS) >= _TOKENS
    return _MINILM if plain and is_whole and not spec.golden else spec.golden


def check_golden(encoder: Encoder, golden: tuple[str, ...]) -> None:
    """Compare an encoder's vectors with the sketch of the version that it is to be; without one, do nothing.

    Fatal: they differ.
    """
    if not golden:
        return
    try:
        expected = np.frombuffer(bytes.fromhex("".join(golden)), np.uint8)
    except ValueError as error:
        raise Fatal(f"golden is not what `manyray pin` wrote ({error}): write it again") from error
    found = _signs(_vectors(encoder)).ravel()
    if len(found) != len(expected):
        raise Fatal(f"golden is of {len(expected)} bytes, and this model's is of {len(found)}: it is another model's")
    share = float(np.unpackbits(found ^ expected).mean())
    if share > SHARE_MAX:
        raise Fatal(
            f"the model does not give the vectors of golden: {share:.1%} of signs differ, and {SHARE_MAX:.0%} may; "
            "its weights, or what computes them, are not those that were pinned: fetch the model again, or pin it anew"
        )


def _vectors(encoder: Encoder) -> Matrix:
    return encoder.encode(encoder.tokenise(TEXTS), encoder.batch_tokens).vectors


def _signs(vectors: Matrix) -> np.ndarray:
    return VectorForm("binary").pack(vectors[:, :_NUMBERS])
