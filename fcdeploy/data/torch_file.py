"""What ``torch.save`` or safetensors wrote, read without PyTorch: tensors where they lie, and nothing is run.

A checkpoint is a pickle, a program for a stack machine that builds objects and may call anything. Here its
instructions, told apart by the standard library, work on plain containers alone: the name of a class is a name, calling
it makes a note of it, and only the few functions that stand for tensors and dictionaries mean something.
"""

import json
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.forms.numpy_files import offset_of

MAGIC = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6
DTYPES = {  # of storages and of tensors, as NumPy has them; bfloat16 as the upper half of a float32
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "BoolStorage": "?",
    "float32": "f4",
    "float64": "f8",
    "float16": "f2",
    "bfloat16": "bfloat16",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "int16": "i2",
    "int32": "i4",
    "int64": "i8",
    "bool": "?",
}
SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
LARGEST_HEADER = 100 << 20  # bytes, what the safetensors library allows
COMPLEX = ("ComplexFloatStorage", "ComplexDoubleStorage", "complex32", "complex64", "complex128")
QUANTIZED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")
STRANGE = "is sparse, nested, quantized or complex"
# Whatever else stands beside weights and holds settings or numbers: it is passed over, and never made.
HARMLESS = (
    *("numpy.dtype", "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal"),
    *("fractions.Fraction", "uuid.UUID", "random.Random", "torch.device", "torch.dtype", "torch.Size"),
    *("torch.serialization._get_layout", "torch.Generator", "copyreg._reconstructor"),
    *("easydict.EasyDict", "yacs.config.CfgNode", "addict.addict.Dict", "attrdict.dictionary.AttrDict"),
    *("builtins.set", "builtins.frozenset", "builtins.complex", "builtins.bytearray", "builtins.object"),
    *("builtins.list", "builtins.tuple", "builtins.int", "builtins.float", "builtins.str", "builtins.bool"),
    *("builtins.range", "builtins.slice", "__builtin__.set", "__builtin__.object", "__builtin__.list"),
)
HARMLESS_MODULES = (
    *(
        "numpy.core.multiarray",
        "numpy._core.multiarray",
        "numpy.dtypes",
        "datetime",
        "pathlib",
        "collections",
    ),
    *("omegaconf", "pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
    *("lightning_fabric.utilities.data", "lightning.fabric.utilities.data", "mmengine.config", "mmcv.utils"),
)
DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict")


class DamagedError(ValueError):
    """The bytes are no pickle that torch.save could have written."""


@dataclass(frozen=True, eq=False)
class Storage:
    """The values behind tensors: where they are, and of which type; count of them, as the file says."""

    key: str
    kind: str


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage; offset and strides in values. problem: why it is none that weights are kept in."""

    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()
    kind: str = ""
    problem: str = ""

    @property
    def floating(self) -> bool:
        """Whether its values are floats."""
        return DTYPES.get(self.kind, "")[:1] in ("f", "b")


@dataclass(eq=False)
class Opaque:
    """An object of which only the name of its class, and what it was given, are known."""

    name: str
    state: object = None


@dataclass(frozen=True, eq=False)
class _Global:
    name: str


@dataclass(frozen=True, eq=False)
class TorchFile:
    """What a file holds: ``found`` is made of containers, numbers, texts, ``Tensor`` and ``Opaque``.

    read(key) gives the bytes of a storage; place(key) where they lie in the file, offset and length, or None where they
    are compressed. wanted: classes and functions, beyond those of weights and settings, that PyTorch would import for
    it. big: whether values are big-endian.
    """

    path: Path
    found: object
    read: Callable[[str], bytes]
    place: Callable[[str], tuple[int, int] | None]
    wanted: tuple[str, ...] = ()
    big: bool = False

    def array(self, tensor: Tensor) -> np.ndarray:
        """Return a tensor's values, floats as float32: a copy. Raises ValueError, a reason, where there are none."""
        dtype, storage = self._type_of(tensor)
        content = self.read(storage.key)
        count = math.prod(tensor.shape)
        if count * dtype.itemsize > len(content):
            raise ValueError(f"claims {count:,} numbers and holds fewer")
        view = _view(tensor, dtype, content)
        if DTYPES[tensor.kind] == "bfloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view.astype(np.float32 if tensor.floating else dtype.newbyteorder("="))

    def stored(self, tensor: Tensor) -> np.ndarray:
        """Return a tensor's values as they lie in the file, bfloat16 as uint16: a memory map unless compressed.

        Raises ValueError, a reason, where there are none.
        """
        dtype, storage = self._type_of(tensor)
        place = self.place(storage.key)
        if place is None or not place[1]:
            return _view(tensor, dtype, self.read(storage.key))
        if sum(place) > len(self._bytes):
            raise ValueError("is cut short")
        return _view(tensor, dtype, self._bytes[place[0] : sum(place)])

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(
            self.path, np.uint8, "r"
        )  # once: a map per tensor would need a descriptor per tensor

    def _type_of(self, tensor: Tensor) -> tuple[np.dtype, Storage]:
        if tensor.problem:
            raise ValueError(tensor.problem)
        assert tensor.storage is not None
        if tensor.kind in (*COMPLEX, *QUANTIZED):
            raise ValueError(STRANGE)
        if tensor.kind not in DTYPES:
            raise ValueError(f"has dtype {tensor.kind}, which cannot be read")
        name = DTYPES[tensor.kind].replace("bfloat16", "u2")
        return np.dtype(name).newbyteorder(">" if self.big else "<"), tensor.storage


def _view(tensor: Tensor, dtype: np.dtype, content: bytes | np.ndarray) -> np.ndarray:
    """Return a tensor's values out of the bytes of its storage; bounds are checked."""
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if (last + 1) * dtype.itemsize > len(content):
        raise ValueError("reaches beyond the end of the file")
    strides = tuple(step * dtype.itemsize for step in tensor.strides)
    return np.ndarray(tensor.shape, dtype, content, tensor.offset * dtype.itemsize, strides)


def read_torch_file(path: Path, largest: int | None = None) -> TorchFile:
    """Read what ``torch.save`` wrote, as a zip archive or, before PyTorch 1.6, as pickles one after the other.

    largest: bytes of the pickle in an archive, in which there are no values of tensors. Raises DamagedError where it is
    none, longer, or cut short.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path, largest)
        with open(path, "rb") as file:
            return _read_legacy(path, file)
    except DamagedError:
        raise
    except (*DAMAGED, IndexError, AttributeError, struct.error) as error:
        reason = reason_of(error)
        raise DamagedError(reason if " " in reason else "") from error


def read_safetensors_file(path: Path) -> TorchFile:
    """Read the tensors of a ``.safetensors`` file, which holds nothing else.

    Raises DamagedError where it is cut short or no such file.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError("its header does not fit in the file")
            header = json.loads(file.read(length))
        places, tensors = {}, {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if (
                any(type(number) is not int or number < 0 for number in (*shape, begin, end))
                or 8 + length + end > size
                or end < begin
            ):
                raise ValueError("it is shorter than its header says")
            strides = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
            kind = SAFETENSORS.get(entry["dtype"], str(entry["dtype"]))
            places[name] = 8 + length + begin, end - begin
            tensors[name] = Tensor(shape, Storage(name, kind), 0, strides, kind)
    except (*DAMAGED, AttributeError, struct.error) as error:
        raise DamagedError(reason_of(error)) from error
    return TorchFile(path, tensors, _reader(path, places), places.__getitem__)


def _reader(path: Path, places: dict[str, tuple[int, int]]) -> Callable[[str], bytes]:
    @lru_cache(maxsize=4)
    def read(key: str) -> bytes:
        at, length = places[key]
        with open(path, "rb") as file:
            file.seek(at)
            return file.read(length)

    return read


def _read_archive(path: Path, largest: int | None) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickled = next((name for name in members if name == "data.pkl" or name.endswith("/data.pkl")), None)
        if pickled is None:
            raise DamagedError("it is a zip archive without data.pkl")
        if largest is not None and members[pickled].file_size > largest:
            raise DamagedError("it holds much more than tensors")
        prefix = pickled.removesuffix("data.pkl")
        big = f"{prefix}byteorder" in members and archive.read(f"{prefix}byteorder") == b"big"
        with archive.open(pickled) as file:
            machine = _Machine()
            found = machine.run(file)

    @lru_cache(maxsize=4)
    def read(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{prefix}data/{key}")

    def place(key: str) -> tuple[int, int] | None:
        info = members[f"{prefix}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        return offset_of(path, info), info.file_size

    return TorchFile(path, found, read, place, tuple(machine.wanted), big)


def _read_legacy(path: Path, file: IO[bytes]) -> TorchFile:
    if file.read(1) != b"\x80":
        raise DamagedError
    file.seek(0)
    if _Machine().run(file) != MAGIC:
        raise DamagedError("it is a pickle that torch.save did not write")
    _Machine().run(file)
    system = _Machine().run(file)
    machine = _Machine()
    found = machine.run(file)
    keys = _Machine().run(file)
    if not isinstance(system, dict) or not isinstance(keys, (list, tuple)):
        raise DamagedError
    places: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    for key in keys:
        kind = machine.storages[str(key)].kind
        count = int.from_bytes(file.read(8), "little", signed=True)
        name = DTYPES.get(kind, "c16" if kind in COMPLEX else "u1")
        length = count * np.dtype("u2" if name == "bfloat16" else name).itemsize
        if kind == "ComplexFloatStorage":
            length //= 2
        if count < 0 or file.tell() + length > size:
            raise DamagedError("it ends before its values do")
        places[str(key)] = file.tell(), length
        file.seek(length, 1)

    return TorchFile(
        path,
        found,
        _reader(path, places),
        places.__getitem__,
        tuple(machine.wanted),
        not system["little_endian"],
    )


@dataclass
class _Machine:
    """Runs the instructions of a pickle on plain containers. storages: by key; wanted: names that are not allowed."""

    stack: list[object] = field(default_factory=list)
    marks: list[list[object]] = field(default_factory=list)
    memo: dict[object, object] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    wanted: dict[str, None] = field(default_factory=dict)

    def run(self, file: IO[bytes]) -> object:
        argument: object
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name == "STOP":
                return self.stack.pop()
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _GETS:
                self.stack.append(self.memo[argument])
            elif name in _PUTS:
                self.memo[argument] = self.stack[-1]
            elif name in _STEPS:
                _STEPS[name](self, str(argument or ""))
            elif name not in ("PROTO", "FRAME"):
                raise DamagedError(f"it has an instruction {name}, which checkpoints do not need")
        raise DamagedError("it ends in the middle")

    def pop_mark(self) -> list[object]:
        top, self.stack = self.stack, self.marks.pop()
        return top

    def push(self, value: object) -> None:
        self.stack.append(value)

    def call(self, function: object, arguments: object) -> object:
        """Return what a function of that name would make of arguments, as far as it is known."""
        if not isinstance(function, _Global):
            return Opaque("")
        name = function.name
        if name in DICTS:
            pairs = arguments[-1] if isinstance(arguments, tuple) and arguments else ()
            return dict(_pairs(pairs)) if isinstance(pairs, (list, dict)) else {}
        if not isinstance(arguments, tuple):
            raise DamagedError
        if name in _BUILDERS:
            return _BUILDERS[name](self, *arguments)
        if name == "torch.Size":
            return arguments[0]
        self.note(name)
        return Opaque(name, arguments)

    def note(self, name: str) -> None:
        module, _, last = name.rpartition(".")
        harmless = name in HARMLESS or any(f"{module}.".startswith(f"{known}.") for known in HARMLESS_MODULES)
        if not (harmless or (module == "torch" and last in DTYPES)):
            self.wanted[name] = None

    def persistent(self, pid: object) -> Storage:
        if (
            not isinstance(pid, tuple)
            or len(pid) < 3
            or pid[0] != "storage"
            or not isinstance(pid[1], _Global)
        ):
            raise DamagedError("it refers to data that is not in the file")
        storage = Storage(str(pid[2]), pid[1].name.rpartition(".")[2])
        return self.storages.setdefault(storage.key, storage)


def _pairs(values: dict | list) -> Iterator[tuple[object, object]]:
    for key, value in values.items() if isinstance(values, dict) else values:
        yield _key(key), value


def _key(key: object) -> object:
    """Return a key as it is where it is a plain one; hashing what is nested could take for ever."""
    return key if isinstance(key, (str, int, float, bytes, bool, type(None))) else object()


def _update(target: object, flat: list[object]) -> None:
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True))
    elif not isinstance(target, Opaque):
        raise DamagedError


def _extend(target: object, values: list[object]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Opaque):
        raise DamagedError


def _build(machine: _Machine, _: object) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Opaque):
        target.state = state
    elif not isinstance(
        target, (dict, Tensor)
    ):  # attributes of dictionaries, such as _metadata, are no weights
        raise DamagedError


def _reduce(machine: _Machine, _: object) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.push(machine.call(function, arguments))


def _newobj_ex(machine: _Machine, _: object) -> None:
    machine.stack.pop()
    _reduce(machine, _)


def _inst(machine: _Machine, argument: str) -> None:
    arguments = tuple(machine.pop_mark())
    machine.push(machine.call(_Global(argument.replace(" ", ".", 1)), arguments))


def _obj(machine: _Machine, _: object) -> None:
    kind, *arguments = machine.pop_mark()
    machine.push(machine.call(kind, tuple(arguments)))


def _stack_global(machine: _Machine, _: object) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise DamagedError
    machine.push(_Global(f"{module}.{name}"))


def _tuple_of(count: int) -> Callable[[_Machine, object], None]:
    def step(machine: _Machine, _: object) -> None:
        values = tuple(machine.stack[-count:])
        if len(values) < count:
            raise DamagedError
        del machine.stack[-count:]
        machine.push(values)

    return step


def _mark(machine: _Machine, _: object) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _append(machine: _Machine, _: object) -> None:
    value = machine.stack.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: _Machine, _: object) -> None:
    values = machine.pop_mark()
    _extend(machine.stack[-1], values)


def _setitem(machine: _Machine, _: object) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine.stack[-1], [key, value])


def _setitems(machine: _Machine, _: object) -> None:
    values = machine.pop_mark()
    _update(machine.stack[-1], values)


def _dict(machine: _Machine, _: object) -> None:
    values = machine.pop_mark()
    made: dict[object, object] = {}
    _update(made, values)
    machine.push(made)


def _memoize(machine: _Machine, _: object) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


_PUSHED = {
    *(
        "INT",
        "LONG",
        "LONG1",
        "LONG4",
        "BININT",
        "BININT1",
        "BININT2",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
    ),
    *(
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
    ),
    *("BINBYTES8", "BYTEARRAY8"),
}
_GETS, _PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
# What an operation does; given the text behind it, if there is one.
_STEPS: dict[str, Callable[[_Machine, str], object]] = {
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_SET": lambda machine, _: machine.push(Opaque("builtins.set")),
    "MARK": _mark,
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "FROZENSET": lambda machine, _: machine.push(Opaque("builtins.frozenset", machine.pop_mark())),
    "DICT": _dict,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.pop_mark(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "MEMOIZE": _memoize,
    "GLOBAL": lambda machine, argument: machine.push(_Global(argument.replace(" ", ".", 1))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "INST": _inst,
    "OBJ": _obj,
    "BUILD": _build,
    "BINPERSID": lambda machine, _: machine.push(machine.persistent(machine.stack.pop())),
    "PERSID": lambda machine, argument: machine.push(machine.persistent(argument)),
}


def _tensor(
    machine: _Machine,
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    *others: object,
    kind: str = "",
) -> Tensor:
    if (
        not isinstance(storage, Storage)
        or not isinstance(shape, (tuple, list))
        or not isinstance(strides, (tuple, list))
        or len(shape) != len(strides)
    ):
        raise DamagedError("a tensor has no storage")
    numbers = (offset, *shape, *strides)
    whole = [number for number in numbers if type(number) is int and 0 <= number < 1 << 62]
    if len(numbers) > 200 or len(whole) < len(numbers):
        raise DamagedError("a tensor has an impossible shape")
    first, rank = whole[0], len(shape)
    return Tensor(tuple(whole[1 : rank + 1]), storage, first, tuple(whole[rank + 1 :]), kind or storage.kind)


def _tensor_v3(
    machine: _Machine,
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    grad: object,
    hooks: object,
    dtype: object,
    *_: object,
) -> Tensor:
    if not isinstance(dtype, _Global):
        raise DamagedError("a tensor has no dtype")
    return _tensor(machine, storage, offset, shape, strides, kind=dtype.name.rpartition(".")[2])


def _parameter(machine: _Machine, data: object, *others: object) -> object:
    if not isinstance(data, Tensor):
        raise DamagedError("a parameter has no values")
    return data


def _from_type(
    machine: _Machine, function: object, kind: object, arguments: object, *others: object
) -> object:
    return machine.call(function, arguments)


def _none_of_ours(problem: str) -> Callable[..., Tensor]:
    return lambda machine, *arguments: Tensor((), problem=problem)


_BUILDERS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.tensor._rebuild_from_type": _from_type,
    "_codecs.encode": lambda machine, text, *others: text,  # bytes, in protocol 2
    "torch._utils._rebuild_meta_tensor_no_storage": _none_of_ours("holds no numbers"),
    **dict.fromkeys(
        (
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_sparse_csr_tensor",
            "torch._utils._rebuild_nested_tensor",
            "torch._utils._rebuild_qtensor",
        ),
        _none_of_ours(STRANGE),
    ),
}
