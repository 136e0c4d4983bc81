"""Tokenising, once for all encoders of a process whose tokenizers agree."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from weakref import WeakSet, WeakValueDictionary

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from encoders.encoder import Tokens

REMEMBERED_BYTES_MAX = 32 * 2**20
"""Of texts and their tokens, where several encoders share a tokenizer."""
_ENTRY_BYTES = 300
"""What Python takes to hold one entry beside its text and numbers, about."""


class Tokeniser:
    """Turns texts into tokens. Where several encoders share it, it remembers the texts that it had last, so that who
    comes second finds them. Any number of threads may use it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str, pad_id: int) -> None:
        """Use `tokeniser_of`."""
        self.count = 0
        """Texts that were tokenised so far, and not remembered."""
        self._tokenizer, self._prompt, self._nothing = tokenizer, prompt, np.array([pad_id], np.int32)
        self.users: WeakSet[object] = WeakSet()
        """The encoders that share it."""
        self._recent: OrderedDict[str, npt.NDArray[np.int32]] = OrderedDict()
        self._bytes = 0
        self._changing = Lock()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts, each behind the prompt; a text of none at all becomes one padding token."""
        ids = self._ids(texts) if len(self.users) < 2 else self._remembered(texts)
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        return Tokens(lengths, np.concatenate(ids) if ids else np.empty(0, np.int32))

    def _ids(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        self.count += len(texts)
        behind = [self._prompt + text for text in texts] if self._prompt else texts
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(behind)]
        return [np.array(ids, np.int32) if ids else self._nothing for ids in found]

    def _remembered(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        with self._changing:
            known = {text: self._recent[text] for text in texts if text in self._recent}
            for text in known:
                self._recent.move_to_end(text)
        new = list(dict.fromkeys(text for text in texts if text not in known))
        made = dict(zip(new, self._ids(new), strict=True))
        with self._changing:
            for text, ids in made.items():
                if text not in self._recent:  # another thread may have been quicker
                    self._recent[text] = ids
                    self._bytes += _size(text, ids)
            while self._bytes > REMEMBERED_BYTES_MAX:
                self._bytes -= _size(*self._recent.popitem(last=False))
        known |= made
        return [known[text] for text in texts]


_tokenisers: WeakValueDictionary[bytes, Tokeniser] = WeakValueDictionary()
_finding = Lock()


def tokeniser_of(user: object, tokenizer: Tokenizer, prompt: str, pad_id: int) -> Tokeniser:
    """The tokeniser for an encoder, `user`: that of the others of the process whose tokens would be the same.

    They agree where all that the tokenizer is made of is equal (vocabulary, normaliser, truncation, special tokens),
    and the prompt.
    """
    made_of = repr((tokenizer.to_str(), prompt, pad_id)).encode()
    key = hashlib.blake2b(made_of, digest_size=16).digest()
    with _finding:
        found = _tokenisers.get(key)
        if found is None:
            found = _tokenisers[key] = Tokeniser(tokenizer, prompt, pad_id)
        found.users.add(user)
        return found


def _size(text: str, ids: npt.NDArray[np.int32]) -> int:
    return len(text) + ids.nbytes + _ENTRY_BYTES
