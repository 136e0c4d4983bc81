from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    FLOAT32: _ClassVar[DType]
    FLOAT16: _ClassVar[DType]
    INT8: _ClassVar[DType]
    BINARY: _ClassVar[DType]

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    COMPUTED: _ClassVar[Origin]
    CACHED: _ClassVar[Origin]
DTYPE_UNSPECIFIED: DType
FLOAT32: DType
FLOAT16: DType
INT8: DType
BINARY: DType
ORIGIN_UNSPECIFIED: Origin
COMPUTED: Origin
CACHED: Origin

class Post(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("post_id", "ray", "version", "dtype", "dims", "vector", "fingerprint", "source_topic", "source_partition", "source_offset", "origin", "posted_ms", "embedded_ms", "scale", "job", "promoted", "retires_ms")
    POST_ID_FIELD_NUMBER: _ClassVar[int]
    RAY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_TOPIC_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PARTITION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    POSTED_MS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDED_MS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    RETIRES_MS_FIELD_NUMBER: _ClassVar[int]
    post_id: str
    ray: str
    version: str
    dtype: DType
    dims: int
    vector: bytes
    fingerprint: bytes
    source_topic: str
    source_partition: int
    source_offset: int
    origin: Origin
    posted_ms: int
    embedded_ms: int
    scale: float
    job: str
    promoted: bool
    retires_ms: int
    def __init__(self, post_id: _Optional[str] = ..., ray: _Optional[str] = ..., version: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., dims: _Optional[int] = ..., vector: _Optional[bytes] = ..., fingerprint: _Optional[bytes] = ..., source_topic: _Optional[str] = ..., source_partition: _Optional[int] = ..., source_offset: _Optional[int] = ..., origin: _Optional[_Union[Origin, str]] = ..., posted_ms: _Optional[int] = ..., embedded_ms: _Optional[int] = ..., scale: _Optional[float] = ..., job: _Optional[str] = ..., promoted: _Optional[bool] = ..., retires_ms: _Optional[int] = ...) -> None: ...
