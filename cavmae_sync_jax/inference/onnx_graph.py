"""Writes a model's encoders as ONNX graphs, for those who serve it without JAX.

An encoder is traced with a batch of any size. The table `_NODES` turns each of its primitive
operations into ONNX nodes. What does not depend on the input is computed at once. The libraries
for this need TensorFlow, or an Orbax older than ours.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from etils import epath
from jax import export
from jaxtyping import Array, Float
from onnx import helper, numpy_helper

from cavmae_sync_jax.inference.model import Model
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

SUFFIX = ".onnx"
OPSET = 18
BATCH = "batch"
INPUTS = {
    AUDIO: "raw log-mel [batch, rows, bins], float32, 10 ms per row",
    VISUAL: "RGB from 0 to 255 [batch, height, width, 3], float32",
}
OUTPUTS = ("global_token", "patch_tokens")  # as `encode_audio` and `encode_image` return them
_INLINED = ("jit", "pjit", "closed_call", "remat", "checkpoint", "remat2", "custom_jvp_call")
_SAME = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint")
_UNARY = {"neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "erf": "Erf"}
_UNARY |= {"abs": "Abs", "logistic": "Sigmoid", "sign": "Sign", "not": "Not"}
_BINARY = {"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"}
_BINARY |= {"max": "Max", "min": "Min", "eq": "Equal", "lt": "Less", "gt": "Greater", "and": "And"}
_REDUCED = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


class Wire(str):
    """The name of a value that depends on the input; all other values are NumPy arrays."""


class Graph:
    """Nodes and constants, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._kept: list[np.ndarray] = []  # whose addresses are keys above

    def node(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the wire of its output, or of all if there are several."""
        names = [Wire(f"v{len(self.nodes)}_{number}") for number in range(outputs)]
        given = [each if isinstance(each, Wire) else self._constant(each) for each in inputs]
        self.nodes.append(helper.make_node(kind, given, names, **attributes))
        return names[0] if outputs == 1 else names

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        small = array.size <= 16
        key = (str(array.dtype), array.shape, array.tobytes() if small else id(value))
        if key not in self._names:
            self._kept.append(value)
            self._names[key] = f"c{len(self._names)}"
            self.constants[self._names[key]] = numpy_helper.from_array(array, self._names[key])
        return self._names[key]


def write(model: Model, destination: epath.PathLike) -> list[epath.Path]:
    """Writes `NAME.audio.onnx` and `NAME.visual.onnx` for a destination `NAME.onnx`.

    Their outputs are those of `encode_audio` and `encode_image`, in float32.

    Raises:
      UserError: if one of them exists or can't be written.
    """
    stem = epath.Path(destination).with_suffix("")
    places = {m: stem.with_name(f"{stem.name}.{m}{SUFFIX}") for m in MODALITIES}
    for place in places.values():
        cli.refuse_existing(place)
    module = model.module.clone(dtype="float32")
    for modality, place in places.items():

        def encode(raw: Float[Array, "batch *shape"], modality: str = modality) -> tuple:
            return tuple(module.apply({"params": model.params}, modality, raw, method="embed"))

        made = model_of(encode, module.raw_shape(modality), modality, OUTPUTS)
        made.doc_string = f"{modality}: {INPUTS[modality]}"
        properties = {
            "checkpoint": model.directory,
            "step": str(model.step),
            "version": cli.version(),
        }
        helper.set_model_props(made, properties)
        partial = place.with_name(f".{place.name}.partial")
        try:
            partial.write_bytes(made.SerializeToString())
            partial.replace(place)
        except OSError as error:
            raise UserError(f"{place} can't be written: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
    return list(places.values())


def model_of(
    function: Callable[[jax.Array], Any],
    shape: Sequence[int],
    input_name: str,
    output_names: Sequence[str],
) -> onnx.ModelProto:
    """The ONNX model of a function of a float32 batch.

    Args:
      function: of `[batch, *shape]`; returns a tuple of arrays whose first axis is the batch.
      shape: of one sample.
      input_name: of the batch.
      output_names: one for each array.

    Raises:
      UserError: if the function does what no entry of the table covers.
    """
    (batch,) = export.symbolic_shape(BATCH)
    traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), jnp.float32))
    graph = Graph()
    constants = [np.asarray(constant) for constant in traced.consts]
    outputs = _run(graph, traced.jaxpr, constants, [Wire(input_name)], Wire(input_name))
    for name, output in zip(output_names, outputs, strict=True):
        graph.nodes.append(helper.make_node("Identity", [output], [name]))

    def described(name: str, aval: Any) -> onnx.ValueInfoProto:
        sizes = [size if isinstance(size, int) else BATCH for size in aval.shape]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "cavmae_sync_jax",
            [described(input_name, traced.jaxpr.invars[0].aval)],
            [described(n, v.aval) for n, v in zip(output_names, traced.jaxpr.outvars, strict=True)],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="cavmae_sync_jax",
    )
    model.ir_version = 9  # of ONNX 1.14, whose opset 18 is; a newer one shuts out older runtimes
    return model


def _run(
    graph: Graph, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any], batch: Wire
) -> list:
    """Adds the equations of a jaxpr; returns its outputs, wires or arrays."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, given, strict=True))

    def read(atom: Any) -> Any:
        return values[atom] if not hasattr(atom, "val") else np.asarray(atom.val)

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        symbolic = any(not isinstance(s, int) for v in equation.outvars for s in v.aval.shape)
        if symbolic or any(isinstance(each, Wire) for each in inputs):
            outputs = _equation(graph, equation, inputs, batch)
        else:
            bound = equation.primitive.bind(*map(jnp.asarray, inputs), **equation.params)
            outputs = [np.asarray(x) for x in (bound if _many(equation) else [bound])]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _many(equation: Any) -> bool:
    return equation.primitive.multiple_results


def _equation(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _SAME:
        return inputs
    if name in _INLINED or name == "custom_vjp_call":
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, [])
        return _run(graph, jaxpr, consts, inputs, batch)
    if name == "scan":
        return _scan(graph, equation, inputs, batch)
    if name == "split":
        parts = np.array(params["sizes"], np.int64)
        found = graph.node("Split", inputs[0], parts, outputs=len(parts), axis=params["axis"])
        return found if len(parts) > 1 else [found]
    if name in _UNARY:
        return [graph.node(_UNARY[name], *inputs)]
    if name in _BINARY:
        return [graph.node(_BINARY[name], *inputs)]
    if name in _REDUCED:
        axes = np.array(params["axes"], np.int64)
        return [graph.node(_REDUCED[name], inputs[0], axes, keepdims=0)]
    if name not in _NODES:
        raise UserError(f"this model can't be written as ONNX: the operation {name} is unknown")
    return [_NODES[name](graph, equation, inputs, batch)]


def _of_equal_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(one.aval.ndim == other.aval.ndim for one, other in pairs)


def _scan(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> list[Any]:
    """Unrolls a loop over stacked layers."""
    params, body = equation.params, equation.params["jaxpr"]
    inner = getattr(body, "jaxpr", body)  # from JAX 0.12 on it has no constants of its own
    closed = getattr(body, "consts", ())
    # What is stacked has one axis less inside; the counts have other names in each version of JAX.
    carries = _of_equal_rank(equation.outvars, inner.outvars)
    consts = _of_equal_rank(equation.invars, inner.invars) - carries
    fixed, carry, stacked = inputs[:consts], inputs[consts : consts + carries], inputs[consts:]
    stacked, steps = stacked[carries:], range(params["length"])
    rows: list[list[Any]] = []
    for step in reversed(steps) if params["reverse"] else steps:
        at = [
            graph.node("Gather", x, np.int64(step), axis=0) if isinstance(x, Wire) else x[step]
            for x in stacked
        ]
        found = _run(graph, inner, closed, [*fixed, *carry, *at], batch)
        carry = found[:carries]
        rows.append(found[carries:])
    if params["reverse"]:
        rows.reverse()
    axis = np.array([0], np.int64)
    columns = [
        [graph.node("Unsqueeze", each, axis) for each in column]
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *(graph.node("Concat", *column, axis=0) for column in columns)]


def _sizes(graph: Graph, shape: Sequence[Any], batch: Wire) -> Any:
    """A shape as ONNX takes it; a batch in it is looked up when the graph runs."""
    if all(isinstance(size, int) for size in shape):
        return np.array(shape, np.int64)
    count = graph.node("Shape", batch, start=0, end=1)
    parts = [np.array([s], np.int64) if isinstance(s, int) else count for s in shape]
    if any(not isinstance(s, int) and str(s) != BATCH for s in shape):
        raise UserError(f"this model can't be written as ONNX: it makes the shape {list(shape)}")
    return graph.node("Concat", *parts, axis=0)


def _reshape(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    shape = [s if isinstance(s, int) else -1 for s in equation.outvars[0].aval.shape]
    return graph.node("Reshape", inputs[0], np.array(shape, np.int64))


def _broadcast(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Any:
    shape, kept = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    old = equation.invars[0].aval.shape
    middle: list[Any] = [1] * len(shape)
    for place, size in zip(kept, old, strict=True):
        middle[place] = size
    value = inputs[0]
    if tuple(middle) != tuple(old):
        flat = np.array([s if isinstance(s, int) else -1 for s in middle], np.int64)
        value = graph.node("Reshape", value, flat)
    if tuple(map(str, middle)) != tuple(map(str, shape)):
        value = graph.node("Expand", value, _sizes(graph, shape, batch))
    return value


def _dot(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if (left, right, left_batch) == ((ranks[0] - 1,), (0,), ()) and ranks[1] == 2:
        return graph.node("MatMul", *inputs)
    letters = iter(string.ascii_lowercase)
    names = [[next(letters) for _ in range(rank)] for rank in ranks]
    for mine, theirs in ((left, right), (left_batch, right_batch)):
        for i, j in zip(mine, theirs, strict=True):
            names[1][j] = names[0][i]
    free = [
        [n for axis, n in enumerate(side) if axis not in (*summed, *shared)]
        for side, summed, shared in zip(
            names, (left, right), (left_batch, right_batch), strict=True
        )
    ]
    out = [names[0][axis] for axis in left_batch] + free[0] + free[1]
    text = f"{''.join(names[0])},{''.join(names[1])}->{''.join(out)}"
    return graph.node("Einsum", *inputs, equation=text)


def _gather(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    """A slice at a place that is known now, as JAX indexes an array whose batch has any size."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    value, start = inputs
    batched = numbers.operand_batching_dims
    if isinstance(start, Wire) or np.ndim(start) != 1 or batched:
        raise UserError("this model can't be written as ONNX: it gathers by computed indices")
    for axis, first in zip(numbers.start_index_map, np.asarray(start).tolist(), strict=True):
        bounds = (np.array([each], np.int64) for each in (first, first + sizes[axis], axis))
        value = graph.node("Slice", value, *bounds)
    if collapsed := numbers.collapsed_slice_dims:
        value = graph.node("Squeeze", value, np.array(collapsed, np.int64))
    return value


def _slice(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Any:
    params, value = equation.params, inputs[0]
    ends, steps = params["limit_indices"], params["strides"] or [1] * len(params["limit_indices"])
    shape = equation.invars[0].aval.shape
    for axis, (begin, end, step) in enumerate(
        zip(params["start_indices"], ends, steps, strict=True)
    ):
        if (begin, str(end), step) != (0, str(shape[axis]), 1):
            bounds = (np.array([each], np.int64) for each in (begin, end, axis, step))
            value = graph.node("Slice", value, *bounds)
    return value


def _squeeze(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    return graph.node("Squeeze", inputs[0], np.array(equation.params["dimensions"], np.int64))


def _concatenate(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    return graph.node("Concat", *inputs, axis=equation.params["dimension"])


def _transpose(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    return graph.node("Transpose", inputs[0], perm=list(equation.params["permutation"]))


def _convert(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return graph.node("Cast", inputs[0], to=kind)


def _select(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    which, if_false, if_true = inputs
    return graph.node("Where", which, if_true, if_false)


def _erfc(graph: Graph, equation: Any, inputs: list[Any], batch: Wire) -> Wire:
    return graph.node("Sub", np.float32(1), graph.node("Erf", inputs[0]))


_NODES: dict[str, Callable[[Graph, Any, list[Any], Wire], Any]] = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot,
    "gather": _gather,
    "slice": _slice,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "transpose": _transpose,
    "convert_element_type": _convert,
    "select_n": _select,
    "erfc": _erfc,
    "square": lambda graph, _, inputs, __: graph.node("Mul", inputs[0], inputs[0]),
    "rsqrt": lambda graph, _, inputs, __: graph.node("Reciprocal", graph.node("Sqrt", *inputs)),
    "integer_pow": lambda graph, equation, inputs, _: graph.node(
        "Pow", inputs[0], np.float32(equation.params["y"])
    ),
}
