"""Read a pickle that somebody else wrote: plain containers and NumPy values, and nothing is ever executed.

A pickle is a program: what it names, it may call. Here a name is looked up in one closed table and nowhere else,
so no module is imported for it; and NumPy's own constructors are replaced by small ones that check what they are
given, since even `dtype.__setstate__` lets a hostile state declare numbers to be pointers.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas.errors import FileError


def loads(content: bytes, *, name: str) -> Any:
    """Rebuild the object in a pickle that holds only plain containers, numbers, text and NumPy values.

    Admitted are dict, list, tuple, set, frozenset, str, bytes, int, float, complex, bool, None, OrderedDict,
    defaultdict, and NumPy scalars, arrays and dtypes of numbers and text. Raises FileError, with `name` and the
    offending global, for anything else, and with `name` if the pickle is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(content), name).load()
    except FileError:
        raise
    except Exception as error:  # a damaged pickle can make the machine raise almost anything
        raise FileError(
            f"{name} is damaged: it cannot be read as a pickle ({type(error).__name__}: {error}). Get it again."
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """The pickle machine with a closed table of names."""

    def __init__(self, stream: io.BytesIO, name: str) -> None:
        # latin1 keeps the bytes of a Python 2 string as they are, which NumPy's old pickles need.
        super().__init__(stream, encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise FileError(
                f"{self._name} is refused: it asks for {module}.{name}, and a foreign pickle may hold only plain "
                "containers, numbers, text and NumPy values. Nothing of it was executed."
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise FileError(
            f"{self._name} is refused: it refers to data outside of itself (persistent id {str(pid)[:80]!r}). "
            "Nothing of it was executed."
        )


class _Dtype:
    """Stands for a dtype while the pickle is read; of its state only the byte order is taken."""

    def __init__(self, kind: str, *_align_and_copy: object) -> None:
        self.dtype: np.dtype[Any] = np.dtype(kind if isinstance(kind, str) else "O")
        if self.dtype.kind not in "biufcSU":
            raise TypeError(f"a dtype {kind!r} is neither number nor text")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array whose state is checked before NumPy sees it."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), _bytes(raw)))  # type: ignore[arg-type]  # bool serves too


def _bytes(raw: str | bytes | bytearray) -> bytes:
    return raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))


def _empty(_subtype: object, _shape: object, _typecode: object) -> _Array:
    """Begin an array, as `numpy.core.multiarray._reconstruct` does; its state brings shape and content."""
    return np.ndarray.__new__(_Array, (0,))


def _scalar(dtype: _Dtype, raw: str | bytes = b"") -> Any:
    """Do the work of `numpy.core.multiarray.scalar`."""
    return np.frombuffer(_bytes(raw), dtype=dtype.dtype, count=1)[0]


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    """Do the work of `numpy.core.numeric._frombuffer`, by which protocol 5 stores arrays."""
    return np.frombuffer(_bytes(raw), dtype=dtype.dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Do what protocol 2 asks of `_codecs.encode`: bytes are stored as latin1 text."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_PLAIN = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex, bool)
_ADMITTED: dict[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _PLAIN},
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct; text cannot be called
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
