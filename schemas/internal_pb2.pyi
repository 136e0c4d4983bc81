from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Source(_message.Message):
    __slots__ = ("topic", "partition", "epoch_ms", "sequence", "job", "ended", "posts", "hits")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_MS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    POSTS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    epoch_ms: int
    sequence: int
    job: str
    ended: bool
    posts: int
    hits: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., epoch_ms: _Optional[int] = ..., sequence: _Optional[int] = ..., job: _Optional[str] = ..., ended: _Optional[bool] = ..., posts: _Optional[int] = ..., hits: _Optional[int] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("version", "share", "promoted", "retires_ms", "mirrored")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    RETIRES_MS_FIELD_NUMBER: _ClassVar[int]
    MIRRORED_FIELD_NUMBER: _ClassVar[int]
    version: str
    share: float
    promoted: bool
    retires_ms: int
    mirrored: bool
    def __init__(self, version: _Optional[str] = ..., share: _Optional[float] = ..., promoted: _Optional[bool] = ..., retires_ms: _Optional[int] = ..., mirrored: _Optional[bool] = ...) -> None: ...

class Deletion(_message.Message):
    __slots__ = ("id", "source", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    source: int
    offset: int
    def __init__(self, id: _Optional[str] = ..., source: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("version", "sources", "fingerprints", "texts", "ids", "contents", "post_sources", "offsets", "posted_ms", "backfill", "probe", "share", "standings", "deletions", "forgotten")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    POST_SOURCES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    POSTED_MS_FIELD_NUMBER: _ClassVar[int]
    BACKFILL_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    STANDINGS_FIELD_NUMBER: _ClassVar[int]
    DELETIONS_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    version: str
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    fingerprints: bytes
    texts: _containers.RepeatedScalarFieldContainer[bytes]
    ids: _containers.RepeatedScalarFieldContainer[str]
    contents: _containers.RepeatedScalarFieldContainer[int]
    post_sources: _containers.RepeatedScalarFieldContainer[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    posted_ms: _containers.RepeatedScalarFieldContainer[int]
    backfill: bool
    probe: bool
    share: float
    standings: _containers.RepeatedCompositeFieldContainer[Standing]
    deletions: _containers.RepeatedCompositeFieldContainer[Deletion]
    forgotten: bytes
    def __init__(self, version: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., fingerprints: _Optional[bytes] = ..., texts: _Optional[_Iterable[bytes]] = ..., ids: _Optional[_Iterable[str]] = ..., contents: _Optional[_Iterable[int]] = ..., post_sources: _Optional[_Iterable[int]] = ..., offsets: _Optional[_Iterable[int]] = ..., posted_ms: _Optional[_Iterable[int]] = ..., backfill: _Optional[bool] = ..., probe: _Optional[bool] = ..., share: _Optional[float] = ..., standings: _Optional[_Iterable[_Union[Standing, _Mapping]]] = ..., deletions: _Optional[_Iterable[_Union[Deletion, _Mapping]]] = ..., forgotten: _Optional[bytes] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("version", "dims", "fingerprints", "vectors", "bits", "forgotten", "copied")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    version: str
    dims: int
    fingerprints: bytes
    vectors: bytes
    bits: int
    forgotten: bytes
    copied: bool
    def __init__(self, version: _Optional[str] = ..., dims: _Optional[int] = ..., fingerprints: _Optional[bytes] = ..., vectors: _Optional[bytes] = ..., bits: _Optional[int] = ..., forgotten: _Optional[bytes] = ..., copied: _Optional[bool] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("lookups_offset", "sources", "standing")
    LOOKUPS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    lookups_offset: int
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    standing: Standing
    def __init__(self, lookups_offset: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ...) -> None: ...
