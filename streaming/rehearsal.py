"""A graph's first run: in a process of its own, with limits, which may die where the job must not.

    job ── one line of JSON, model.onnx, warmup ──▶ this process ── one line: "ok", or why not ──▶ job
What can be seen of a graph without running it is looked at first: operators of known domains and without loops, all
weights in the file, inputs and outputs as the manifest says. Then it is loaded and run on the warm-up's users, in as
much memory as a model of its declared size needs. On the CPU in any case: where there is a GPU, it is the job's.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import ModelRefused
from schemas.release import MODEL, OUTPUT_INDEX, OUTPUT_SCORE, WARMUP, Manifest

if TYPE_CHECKING:
    import onnx

# ONNX's own operators, and those of ONNX Runtime, which quantised graphs use.
DOMAINS = ("", "ai.onnx", "com.microsoft")
# What may run for ever on input that the warm-up does not have.
ENDLESS = ("Loop", "Scan", "SequenceMap")
# What may be taken beyond what the process has when it starts: the graph some times over while it is optimised, that
# many arrays of a score for every item of every user, and room for all else.
GRAPH_COPIES, SCORE_ARRAYS, ROOM_BYTES = 4, 8, 512 * 2**20
# Loading and running a gigabyte takes a core half a minute; what takes longer would hold up the releases behind it.
LONGEST_S = 120
# The job's own work goes first.
NICENESS = 10
SAID_CHARACTERS = 300


def rehearse(python: str, manifest: Manifest, files: dict[str, bytes], users: int) -> None:
    """Try a graph in another process, on as many users as the job will give it at once. Raises ModelRefused.

    python: the interpreter, with this package's requirements.
    """
    told = {
        **manifest.model_dump(include={"version", "history", "top_k", "item_count", "inputs"}),
        "model": len(files[MODEL]),
        "users": users,
    }
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        done = subprocess.run(
            [python, "-m", "streaming.rehearsal"],
            input=json.dumps(told).encode() + b"\n" + files[MODEL] + files[WARMUP],
            capture_output=True,
            cwd=Path(__file__).parents[1],
            # Threads of a numeric library would each reserve memory.
            env={**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            timeout=LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        said = f"is not done after {LONGEST_S} s"
    else:
        said = done.stdout.decode(errors="replace").strip()[:SAID_CHARACTERS]
        if done.returncode == 0 and said == "ok":
            return
        if not said:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            said = f"ended its first run with {done.returncode} ({' '.join(last)[:SAID_CHARACTERS]})"
    raise ModelRefused(f"{MODEL} of release {manifest.version} {said}", "look at how it was exported")


def main() -> None:
    """The process: read the request, say how it went."""
    os.nice(NICENESS)
    told = json.loads(sys.stdin.buffer.readline())
    graph = sys.stdin.buffer.read(told["model"])
    warmup = sys.stdin.buffer.read()
    import numpy
    import onnxruntime  # both loaded before the limits: what they take is not the graph's

    scores = told["users"] * (told["item_count"] + 1) * 4
    _limit(GRAPH_COPIES * len(graph) + SCORE_ARRAYS * scores + ROOM_BYTES)
    try:
        trouble = trouble_of(graph, told)
        if trouble is None:
            with numpy.load(BytesIO(warmup), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            _run(onnxruntime, numpy, graph, arrays, told)
    except MemoryError:
        trouble = "takes more memory than a model of its size needs"
    except Exception as error:  # whatever a damaged or hostile graph makes of the libraries
        trouble = f"does not run ({type(error).__name__}: {' '.join(str(error).split())})"
    print((trouble or "ok")[:SAID_CHARACTERS], flush=True)
    # Whatever the graph has left behind in the libraries is not taken down in order.
    os._exit(0)


def trouble_of(content: bytes, told: dict[str, Any]) -> str | None:
    """What is wrong with a graph as far as it can be seen without running it, or None."""
    import onnx

    model = onnx.load_model_from_string(content)
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes([model.graph.node, *(function.node for function in model.functions)]):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            return f"has an operator of the unknown domain {node.domain!r} ({node.op_type})"
        if node.op_type in ENDLESS:
            return f"has the operator {node.op_type}, which may never end"
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            return f"keeps the weights {tensor.name!r} outside of its file"
    return _interface_trouble(model, told)


def _interface_trouble(model: "onnx.ModelProto", told: dict[str, Any]) -> str | None:
    shapes = {
        value.name: [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if {value.name for value in model.graph.input} != set(told["inputs"]):
        return f"asks for {sorted(value.name for value in model.graph.input)}, not for {sorted(told['inputs'])}"
    declared = {
        "item_index": (1, told["history"]),
        "available": (0, told["item_count"] + 1),
        OUTPUT_INDEX: (1, told["top_k"]),
        OUTPUT_SCORE: (1, told["top_k"]),
    }
    for name, (axis, size) in declared.items():
        if name in told["inputs"] or name in (OUTPUT_INDEX, OUTPUT_SCORE):
            shape = shapes.get(name, [])
            # A size that is left open is known after the first run, and compared then.
            if len(shape) <= axis or (isinstance(shape[axis], int) and shape[axis] != size):
                return f"has {name} of shape {shape}, where {size} was declared"
    return None


def _nodes(groups: Iterable[Any]) -> Iterator[Any]:
    """Every node, also of graphs within nodes."""
    for group in groups:
        for node in group:
            yield node
            for attribute in node.attribute:
                inner = [attribute.g, *attribute.graphs] if attribute.HasField("g") else [*attribute.graphs]
                yield from _nodes(graph.node for graph in inner)


def _tensors(model: "onnx.ModelProto") -> Iterator[Any]:
    """Every constant, wherever it stands."""
    groups = [model.graph.node, *(function.node for function in model.functions)]
    graphs = [model.graph]
    for node in _nodes(groups):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []:
                yield from (sparse.values, sparse.indices)
            graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _run(onnxruntime: Any, numpy: Any, graph: bytes, arrays: dict[str, Any], told: dict[str, Any]) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = numpy.arange(told["users"]) % len(arrays[OUTPUT_INDEX])
    feeds = {name: arrays[name][rows] for name in told["inputs"] if name != "available"}
    if "available" in told["inputs"]:
        feeds["available"] = arrays.get("available", numpy.ones(told["item_count"] + 1, numpy.bool_))
    session.run([OUTPUT_INDEX, OUTPUT_SCORE], feeds)


def _limit(more_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (LONGEST_S, LONGEST_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
