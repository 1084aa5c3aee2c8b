"""Reads files of PyTorch weights without PyTorch: state dicts that torch.save wrote, and safetensors.

torch.save writes a pickle in which a tensor says only where its numbers stand: since PyTorch 1.6 in members of a zip
archive, before in pieces after the pickle. Unpickling may call whatever the file names, so all but tensors and plain
containers is refused, as torch.load does with weights_only.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline import storage
from pipeline.errors import InputError, one_line

# What training scripts call the state dict when they save more beside it.
INSIDE = ('state_dict', 'model')
DTYPES = {
    'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'LongStorage': 'i8', 'IntStorage': 'i4',
    'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1', 'BoolStorage': '?',
}  # fmt: skip
SAVE = 'save one with torch.save(model.state_dict(), FILE)'
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """A row of numbers in a file: its key there, type and length."""

    key: str
    dtype: np.dtype
    length: int


class Tensor(NamedTuple):
    """A part of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: str) -> dict[str, np.ndarray]:
    """The tensors of a file by name, in the file's order.

    Of a dict that has more beside it (epoch, optimizer) its `state_dict` or `model` is taken, and the prefix `module.`
    that torch.nn.DataParallel gives goes.

    Raises:
        InputError: there is no such file, it is damaged, or holds anything else than tensors.
    """
    with storage.open_read(path) as file:
        content = file.read()
    try:
        tensors = _read_safetensors(content) if path.endswith('.safetensors') else _read_pickle(content)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    except Exception as error:  # unpickling what is damaged raises about everything
        raise InputError(
            f"{path}: can't be read as PyTorch weights ({one_line(error) or type(error).__name__}); get the file again"
        ) from None
    if not tensors:
        raise InputError(f'{path}: holds no tensors; give a file of a whole state dict')
    return {name.removeprefix('module.'): value for name, value in tensors.items()}


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    try:
        from safetensors import numpy as safetensors
    except ModuleNotFoundError:
        raise InputError("needs the package safetensors: pip install -c constraints.txt -e '.[import]'") from None
    return safetensors.load(content)


def _read_pickle(content: bytes) -> dict[str, np.ndarray]:
    zipped = zipfile.is_zipfile(io.BytesIO(content))
    saved, numbers = (_read_zip if zipped else _read_legacy)(io.BytesIO(content))
    for name in INSIDE:
        if isinstance(saved, Mapping) and isinstance(saved.get(name), Mapping):
            saved = saved[name]
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(f'is no state dict; {SAVE}')
    return {str(name): _array(tensor, numbers) for name, tensor in saved.items()}


def _read_zip(file: io.BytesIO) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    archive = zipfile.ZipFile(file)
    (pickled,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
    folder = pickled.removesuffix('data.pkl')
    if f'{folder}byteorder' in archive.namelist() and archive.read(f'{folder}byteorder') != b'little':
        raise InputError('has big-endian numbers; save it on another machine')
    saved = _Unpickler(io.BytesIO(archive.read(pickled))).load()
    return saved, lambda row: np.frombuffer(archive.read(f'{folder}data/{row.key}'), row.dtype, row.length)


def _read_legacy(file: io.BytesIO) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """What PyTorch wrote before 1.6: five pickles, then for each key of the last its length (int64) and numbers."""
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise ValueError('it begins with another number')
    for _ in ('version', 'system'):
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    saved = unpickler.load()
    numbers = {}
    for key in _Unpickler(file).load():
        length, row = int.from_bytes(file.read(8), 'little'), unpickler.storages[key]
        numbers[key] = np.frombuffer(file.read(length * row.dtype.itemsize), row.dtype, row.length)
    return saved, lambda row: numbers[row.key]


def _array(tensor: Tensor, numbers: Callable[[Storage], np.ndarray]) -> np.ndarray:
    row, shape, strides = tensor.storage, tensor.shape, tensor.strides
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(0, tensor.offset, *shape, *strides) < 0 or (0 not in shape and last >= row.length):
        raise ValueError('a tensor leaves its storage')
    steps = [stride * row.dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers(row)[tensor.offset :], shape, steps).copy()


class _RebuildTensor:
    """What a pickle may call to make a tensor; without attributes, for a pickle may set those of what it names."""

    __slots__ = ()

    def __call__(self, row: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
        return Tensor(row, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    """What it may call to make a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


CALLABLE: dict[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch', 'Size'): tuple,
    ('torch._utils', '_rebuild_tensor'): _RebuildTensor(),
    ('torch._utils', '_rebuild_tensor_v2'): _RebuildTensor(),
    ('torch._utils', '_rebuild_parameter'): _RebuildParameter(),
    **{('torch', name): name for name in DTYPES},  # no dtype of numpy's, whose state a pickle could set
}


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers only.

    Attributes:
        storages: those that tensors stand in, by key.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in CALLABLE:
            raise InputError(f'holds {module_name}.{global_name}, not tensors alone; {SAVE}')
        return CALLABLE[module_name, global_name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != 'storage' or any(view):
            raise InputError(f'holds a {kind}, not tensors alone; {SAVE}')
        return self.storages.setdefault(key, Storage(key, np.dtype(DTYPES[dtype]).newbyteorder('<'), length))
