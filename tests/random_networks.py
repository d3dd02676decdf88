"""Random networks (network_writer), and what must agree about each: with itself in float64, with NumPy, C and other runtimes.

    python tests/random_networks.py --count 5000 --seed 1        thousands, by hand; --every 1 writes every runtime's file for each

Each is refused by a ValueError that names what is at fault, or every result below agrees, with a bound that follows from the arithmetic
(network_bounds). A failure prints the network's source, which runs as it is.
"""

import argparse
import collections
import random
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import integer_reference
import numpy as np
import step_reference
import torch
from c_library import one_library
from network_bounds import Truth, distances, dtype_of, truth
from network_writer import Network, write
from torch import nn

from qlab.deploy import c, onnx, pytorch, tflite
from qlab.nets import dead, graph, integer, operations, ptq, qat
from qlab.nets.integer import IntegerNetwork
from qlab.quant import linear

# What must agree


TABLES = (operations.AS_MODULE, operations.IN_PLACE, operations.ONE_NUMBER, operations.RESHAPES, operations.PERMUTES, operations.PARTS,
          operations.CATS, operations.MEANS, operations.NOTHING_CALLS, operations.DROPOUTS, operations.ARITHMETIC,
          ("pad", "copy", "view_as", "getattr", "batch_norm", "max_pool2d", "max_pool1d"))
FUNCTIONS = "|".join(sorted({getattr(call, "__name__", call) for table in TABLES for call in table}))
MADE = "map|row|padded|scaled|as_rows|ordered|split|turned|groups|rows|order|pad|codes"      # what is behind a made-up name's last _
NAMED = re.compile(rf"\b(the network|images?|({FUNCTIONS})_*(_\d+)?(_layer)?_*(_({MADE}))?|_tensor_constant\d+|x)\b")


@dataclass
class Report:
    """What one network came to: who refused it, and what is still to be compared with C."""

    net: Network
    refused: dict[str, str] = field(default_factory=dict)
    network: IntegerNetwork | None = None
    codes: torch.Tensor | None = None
    done: set[str] = field(default_factory=set)


class Check:
    """The checks of one network, one after the other; an AssertionError says what went wrong."""

    def __init__(self, net: Network, everything: bool = False):
        self.net, self.everything, self.report = net, everything, Report(net)
        self.model, self.images = net.make()
        self.shape, self.rng = tuple(self.images.shape[1:]), random.Random(net.seed + 1)
        names = [name for name, _ in self.model.named_modules() if name]
        self.names = {form for name in names for form in (name, name.replace(".", "_"), name.rpartition(".")[2])}

    def attempt(self, what: str, call: Callable, *arguments, **options):
        """The call's result, or None where it is refused in one sentence that names what is at fault."""
        before = state(self.model, self.images)
        try:
            result = call(*arguments, **options)
        except ValueError as error:
            said = str(error)
            named = any(name in said for name in self.names) or NAMED.search(said)
            assert named, f"{what} is refused without a name: {said}"
            assert "\n" not in said and said.endswith("."), f"{what} is refused in more than a sentence: {said}"
            self.report.refused[what] = said
            result = None
        assert state(self.model, self.images) == before, f"{what} changed the model or the images that it was given"
        self.report.done |= {what} if result is not None else set()
        return result

    @torch.no_grad()
    def run(self) -> Report:
        true = truth(self.net)
        self.small = torch.isfinite(true.magnitude).all() and true.magnitude.max() < (3e4 if true.u == 2.0**-11 else 1e30)
        self.float_ways(true)
        quantized = self.quantized(true)
        if quantized is not None:
            self.integers(quantized)
        if self.everything:
            self.files(true)
            self.trained()
        return self.report

    def near(self, what: str, got: torch.Tensor, want: torch.Tensor, bound: torch.Tensor) -> None:
        assert got.shape == want.shape, f"{what}: the shape is {tuple(got.shape)}, and must be {tuple(want.shape)}"
        if self.small:
            off = (got.double() - want.double()).abs()
            assert (off <= bound).all(), (f"{what}: off by {off.max():.4g} where {bound.max():.4g} is the most that arithmetic explains, "
                                          f"of values up to {want.abs().max():.4g}")

    def inputs(self, model: nn.Module) -> torch.Tensor:
        return self.images.to(dtype_of(model)).clone()

    def float_ways(self, true: Truth) -> None:
        """Graph and folding: rounding alone. 16-bit weights: half a step each. Dead filters: what they are fed is zero."""
        traced = self.attempt("trace", graph.trace, self.model)
        if traced is not None:
            self.near("trace", traced(self.inputs(traced)), true.values, true.rounding())
        folded = self.attempt("fold", ptq.fold_batch_norm, self.model)
        if folded is not None:
            self.near("fold", folded(self.inputs(folded)), true.values, true.rounding())
            again = self.attempt("trace of folded", graph.trace, folded)
            if again is not None:
                self.near("trace of folded", again(self.inputs(again)), true.values, true.rounding())
            found = self.attempt("dead", dead.find, folded, self.inputs(folded))
            if found is not None:
                zeroed = self.attempt("zero", dead.zero, folded, found)
                if zeroed is not None:
                    self.near("zero", zeroed(self.inputs(zeroed)), true.values, true.rounding())
        q = self.attempt("weights", ptq.quantize_weights, self.model, lambda w: linear.quantize(w, 16, "symmetric"))
        if q is not None:
            self.near("weights of 16 bits", q.model.eval()(self.inputs(q.model)), true.values, true.spread + true.rounding())

    def quantized(self, true: Truth) -> ptq.Quantized | None:
        """Simulated against the network itself: half a step of each weight, a code of each activation (half for rounding, half for the
        range's end), and as much again of the weights where the bias is corrected."""
        options = {"equalize": self.rng.random() < 0.2, "correct_bias": self.rng.random() < 0.2}
        if self.rng.random() < 0.3:
            options["activation_bits"] = self.rng.randint(2, 8)
        if self.rng.random() < 0.3:
            bits = self.rng.randint(2, 8)
            options["weights"] = lambda w: linear.quantize(w, bits, "symmetric", axis=self.axis)
        self.axis = self.rng.choice([0, None])
        if self.rng.random() < 0.1:
            options["ranges"] = self.rng.choice(["average", "percentile", "mse", "entropy"])
        q = self.attempt("quantize", ptq.quantize, self.model, self.images, **options)
        if q is None:
            return None
        simulated = q.model(self.inputs(q.model))
        if not options["correct_bias"]:
            values, bound = distances(q, self.images.float(), weight=0.5, codes=False)
            self.near("decoded weights", values, true.values, bound + true.rounding())
            if options.get("ranges") in (None, "average"):
                _, bound = distances(q, self.images.float(), weight=0.5, code=1.0)
                self.near("simulated", simulated, true.values, bound + true.rounding())
        return q

    def integers(self, q: ptq.Quantized) -> None:
        """Integers against NumPy, bit for bit, and against the simulation: a code and a half of each activation (two roundings, against
        one), half a unit of each bias."""
        network = self.attempt("convert", integer.convert, q, self.shape)
        if network is None:
            return
        images = self.images.float()
        codes = network(self.images)
        self.same_in_numpy("integers", q, network, codes)
        simulated, bound = distances(q, images, code=1.51, unit=0.5)
        self.near("integers", network.decode(codes), simulated, bound)
        self.report.network, self.report.codes = network, network.encode(images)
        self.stored(q, network, codes)
        self.microcontroller(q, network, codes)

    def same_in_numpy(self, what: str, q: ptq.Quantized, network: IntegerNetwork, codes: torch.Tensor) -> None:
        """Bit for bit: the steps one by one, and the whole lowered anew from the simulation, where that reference knows its nodes."""
        steps = step_reference.network(network, network.encode(self.images).numpy())
        assert np.array_equal(codes.numpy(), steps), f"{what}: not the codes of the steps in NumPy"
        if integer_reference.knows(q.model):
            reference, fake = integer_reference.run(q, self.images.float())
            same = np.array_equal(codes.numpy().astype(int) + 2 ** (fake.bits - 1), reference)
            assert same, f"{what}: not the codes of the NumPy reference"

    def stored(self, q: ptq.Quantized, network: IntegerNetwork, codes: torch.Tensor) -> None:
        """What a file gives back computes the same, to the bit."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.safetensors"
            network.save(path)
            assert torch.equal(integer.load(path)(self.images), codes), "stored integers: other codes"
            q.save(path)
            again = ptq.load(path)
            assert torch.equal(again.model(self.inputs(q.model)), q.model(self.inputs(q.model))), "stored network: other values"

    def microcontroller(self, q: ptq.Quantized, network: IntegerNetwork, codes: torch.Tensor) -> None:
        """tflite-micro: bit for bit. The others: each operator at most one code away (qlab.deploy.tflite), carried on by those after it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.tflite"
            if self.attempt("tflite", tflite.export, network, path, self.shape) is None:
                return
            if MICRO:
                assert torch.equal(tflite.run(path, self.report.codes, "micro"), codes), "tflite-micro: other codes"
                self.report.done.add("micro")
            _, bound = distances(q, self.images.float(), code=1.0)
            most = bound / network.grid_out.scale + 1e-3
            for kernels in ("xnnpack", "builtin", "reference"):
                apart = (tflite.run(path, self.report.codes, kernels).int() - codes.int()).abs()
                assert (apart <= most).all(), f"{kernels}: {apart.max()} codes apart, where {most.max():.3g} can be explained"

    def files(self, true: Truth) -> None:
        """Float files of ONNX Runtime and torch.export: rounding."""
        if true.values.dim() != 2:
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, way in (("net.onnx", onnx), ("net.pt2", pytorch)):
                path = Path(folder) / name
                if self.attempt(name, way.export, self.model, path, kind="float", image_shape=self.shape) is not None:
                    self.near(name, way.run(path, self.images.float()), true.values, true.rounding())

    def trained(self) -> None:
        """A prepared network and what it is converted to: the same weights and activations, up to a step or a code that rounding moves."""
        prepared = self.attempt("prepare", qat.prepare, self.model, self.images, 8, 8, learned=False, ranges="minmax")
        q = None if prepared is None else self.attempt("qat", qat.convert, prepared)
        if q is not None:
            values, bound = distances(q, self.images.float(), weight=1.0, code=1.0)
            self.near("qat", prepared(self.inputs(prepared)), values, bound)
            network = self.attempt("convert of qat", integer.convert, q, self.shape)
            if network is not None:
                self.same_in_numpy("qat", q, network, network(self.images.float()))


try:
    import tflite_micro  # noqa: F401 - Linux on x86-64 alone
    MICRO = True
except ImportError:
    MICRO = False


def state(model: nn.Module, images: torch.Tensor) -> tuple:
    """All that a call could change: types, modes, hooks, attributes, and the bits and identity of every tensor."""
    seen = [(name, type(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks), list(m._modules), sorted(vars(m)))
            for name, m in model.named_modules()]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False), ("images", images)]
    bits = [(name, id(t), t.dtype, t.requires_grad, t.grad is None, t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            for name, t in tensors]
    return seen, bits


def same_in_c(reports: list[Report]) -> None:
    """Integers against C, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = {}
        for report in reports:
            shape = tuple(report.codes.shape[1:])
            try:
                c.export(report.network, Path(folder) / "try.c", shape)
                wanted[str(report.net.seed)] = report.network, shape
            except ValueError as error:
                report.refused["c"] = str(error)
                with described(report.net):
                    assert not report.net.plain, f"a plain network is refused: {error}"
        run = one_library(wanted, Path(folder))
        for report in reports:
            if str(report.net.seed) in wanted:
                with described(report.net):
                    assert torch.equal(run(str(report.net.seed), report.codes), report.network.run(report.codes)), "C: other codes"
                report.done.add("c")


# Many networks


class described:
    """Whatever fails inside says which network it was: its seed and its source."""

    def __init__(self, net: Network):
        self.net = net

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and issubclass(kind, Exception):
            frames = [f"  {f.filename.rpartition('/')[2]}:{f.lineno} {f.line}" for f in traceback.extract_tb(trace)]
            where = "" if kind is AssertionError else "\n".join(frames[-8:])
            made_of = ", ".join(sorted(self.net.traits)) or "plain"
            raise AssertionError(f"seed {self.net.seed} ({made_of}): {kind.__name__}: {error}\n{where}\n{self.net.source}") from None
        return False


def check(seed: int, everything: bool = False) -> Report:
    net = write(seed)
    with described(net):
        report = Check(net, everything).run()
        wrong = {what: said for what, said in report.refused.items() if net.plain and not (what == "tflite" and TFLITE_CANNOT.search(said))}
        assert not wrong, f"a plain network is refused: {wrong}"
    return report


TFLITE_CANNOT = re.compile("quantize activations to 8 bits|with dilation=|in 16 bits|less than 256")  # what its runtimes do not have


def check_many(seeds: Sequence[int], every: int, tell: Callable[[str], None] = lambda said: None) -> tuple[list[Report], list[str]]:
    """Check the networks of these seeds, every so many with all kinds of files; the reports, and what failed. tell: gets that at once."""
    reports, failures = [], []

    def note(error: AssertionError) -> None:
        failures.append(str(error))
        tell(f"{error}\n")

    for start in range(0, len(seeds), 100):  # a C library for each hundred
        fresh = []
        for i, seed in enumerate(seeds[start:start + 100], start):
            try:
                fresh.append(check(seed, everything=every > 0 and i % every == 0))
            except AssertionError as error:
                note(error)
        try:
            same_in_c([report for report in fresh if report.network is not None])
        except AssertionError as error:
            note(error)
        reports += fresh
    return reports, failures


def summary(reports: list[Report]) -> str:
    """How many networks of each trait came how far, and how many each way out refused."""
    lines = []
    ways = ("trace", "fold", "weights", "quantize", "convert", "c", "tflite")
    traits = sorted({trait for report in reports for trait in report.net.traits if not trait.startswith("hook on")} | {"plain"})
    for trait in traits:
        those = [r for r in reports if trait in r.net.traits or (trait == "plain" and r.net.plain)]
        counts = ", ".join(f"{way} {sum(way in r.done for r in those)}" for way in ways)
        lines.append(f"{trait:26} {len(those):5} networks: {counts}")
    said = collections.Counter(re.sub(r"\b\w*\d\w*(\.\d+)?\b", "N", s)[:150] for r in reports for s in set(r.refused.values()))
    return "\n".join(lines + [f"{count:5} refusals: {text}" for text, count in said.most_common(25)])


def main() -> int:
    parser = argparse.ArgumentParser(description="Random networks, checked against themselves, NumPy, C and other runtimes.")
    parser.add_argument("--count", type=int, default=200, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="the first network's seed; the others follow")
    parser.add_argument("--every", type=int, default=40,
                        help="each how many-th is also written to ONNX and .pt2 files and prepared for training; 0: none")
    parser.add_argument("--show", action="store_true", help="print the first network and stop")
    given = parser.parse_args()
    if given.show:
        print(write(given.seed).source)
        return 0
    torch.set_num_threads(1)
    reports, failures = check_many(range(given.seed, given.seed + given.count), given.every, partial(print, flush=True))
    print(summary(reports))
    print(f"{len(reports)} networks agree or are refused by name, {len(failures)} failed.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
