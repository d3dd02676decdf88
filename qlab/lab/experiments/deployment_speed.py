"""The memory and the times of notebook 14's runtimes: parts of qlab.lab.experiments.deployment.

The runtimes take turns, one call each, again and again, and the fastest of a runtime's calls counts: what else a machine does can only
add time. On a machine that is busy all the same, two threads wait for each other longer than they compute: so they wait for a quiet one.
"""

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from qlab.deploy import onnx, pytorch, tflite
from qlab.deploy.side_by_side import all_threads
from qlab.lab import data, machine, quiet
from qlab.lab.experiments.deployment_files import (
    HOST,
    LITERT,
    MICRO,
    NETS,
    ONE_BY_ONE,
    ONNX,
    OURS,
    TORCH,
    encoded,
    library,
    network,
    place,
)

BATCHES, REPEATS = (1, 4, 16, 64), 20
Rows = Iterator[tuple[str, dict]]                                                           # (network, what was measured)
LOADS = {  # what runs in a fresh Python, with the file's path in sys.argv[1]
    "Python with NumPy": "",
    "LiteRT": "from ai_edge_litert.interpreter import Interpreter; i = Interpreter(sys.argv[1], num_threads=1); "
              "i.allocate_tensors(); i.invoke()",
    MICRO: "from tflite_micro.python.tflite_micro import runtime; i = runtime.Interpreter.from_file(sys.argv[1], arena_size=131072); "
           "i.set_input(numpy.zeros((1, 28, 28, 1), numpy.int8), 0); i.invoke()",
    HOST: "import ctypes; f = ctypes.CDLL(sys.argv[1]); getattr(f, sys.argv[2] + '_run')(bytes(784), ctypes.create_string_buffer(10))",
    "ONNX Runtime": "import onnxruntime as o; s = o.InferenceSession(sys.argv[1]); "
                    "s.run(None, {'images': numpy.zeros((1, 1, 28, 28), numpy.float32)})",
    "PyTorch": "import torch; m = torch.export.load(sys.argv[1]).module(); m(torch.zeros(1, 1, 28, 28))",
}
PEAK = "\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def memory() -> Rows:
    """By network: the most memory that a Python process held, in kB, which loads a runtime and the network's file and runs one image."""
    for net in NETS:
        paths = {"LiteRT": place(net, "tflite"), MICRO: place(net, "tflite"), HOST: library(net), "ONNX Runtime": place(net, "onnx static"),
                 "PyTorch": place(net, "pytorch float")}
        done = {}
        for name, program in LOADS.items():
            command = [sys.executable, "-c", f"import sys, numpy\n{program}{PEAK}", str(paths.get(name, "")), net]
            done[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        yield net, done


def callables(net: str, threads: int) -> dict[str, Callable[[int], object]]:
    """Every runtime, loaded, as a function of the batch size: it runs the first images of the test set."""
    images, codes = data.load("test").images, encoded(net)
    pixels = codes.movedim(1, -1).contiguous().numpy()
    loaded = {name: (tflite.load(place(net, "tflite"), kernels, threads), pixels) for name, kernels in LITERT.items()}
    loaded |= {name: (onnx.load(place(net, f"onnx {kind}"), threads), images) for name, kind in ONNX.items()}
    loaded |= {name: (pytorch.load(place(net, f"pytorch {kind}"), trust=True, compile=compiled), images)
               for name, (kind, compiled) in TORCH.items()}
    loaded[OURS] = network(net).run, codes
    if threads == 1:  # these take one image after the other, on one thread
        loaded |= {MICRO: (tflite.load(place(net, "tflite"), "micro"), pixels), HOST: (c_function(net), codes)}
    return {name: lambda n, run=run, x=x: run(x[:n]) for name, (run, x) in loaded.items()}


def c_function(net: str) -> Callable[[torch.Tensor], None]:
    """The compiled C file by itself: c.run also reads, checks and compiles."""
    function, logits = getattr(ctypes.CDLL(str(library(net))), f"{net}_run"), torch.zeros(10, dtype=torch.int8)

    def run(codes: torch.Tensor) -> None:
        for image in codes:
            function(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(logits.data_ptr()))

    return run


def timing(anyway: bool = False) -> Rows:
    """By network: microseconds an image (fastest of turns) by runtime, threads and batch; the machine, and how busy others kept it.

    anyway: on a busy machine too, without waiting for a quiet one.
    """
    from torch._inductor import config

    config.compile_threads = 1  # in this process: the watch would take the compiler's workers for somebody else
    for net in NETS:
        watch, done = quiet.wait(anyway), {"machine": machine.environment() | {"line": machine.describe()}, "us": {}}
        for threads in all_threads():
            with pytorch.torch_threads(threads):
                made = callables(net, threads)
                for batch in BATCHES:
                    some = {name: run for name, run in made.items() if batch == 1 or name not in ONE_BY_ONE}
                    for name, us in turns(some, batch).items():
                        done["us"].setdefault(name, {}).setdefault(str(threads), {})[str(batch)] = us
                    print(net, threads, batch, flush=True)
        yield net, {"load": watch.load()} | done


def turns(made: dict[str, Callable], batch: int) -> dict[str, float]:
    """The least microseconds an image. All take turns, so that what disturbs one disturbs all; a slow one sits out after five."""
    samples = {name: [] for name in made}
    for turn in range(2 + REPEATS):
        for name, runtime in made.items():
            if len(samples[name]) >= 5 and min(samples[name]) > 0.2e9:
                continue
            started = time.perf_counter_ns()
            runtime(batch)
            if turn >= 2:
                samples[name].append(time.perf_counter_ns() - started)
    return {name: round(min(taken) / 1e3 / batch, 1) for name, taken in samples.items()}
