"""The runs behind notebook 17: bits chosen by the machine, for the weights of the depthwise net and of the cnn; nothing is trained.

    python -m qlab.lab.experiments.search                     all parts; about 30 minutes of one core; writes records/search.json
    python -m qlab.lab.experiments.search proxies             one part again; the others' results stay in the record
    python -m qlab.lab.experiments.search --images 64 --allocations 20 --tests 500 --folder /tmp/try          a small try elsewhere

    proxies    each proxy's table, with its passes and seconds; the sums that it predicts for random allocations of nearly equal bytes,
               and what these do: the KL on the calibration images, other training images that are right; rank correlations. The best
               of them on 1,000 of these images, on the test images
    budgets    the program on KL from 2 to 5 bits a weight, in bytes and in bit operations: the accuracy that the drops of single layers
               predict, and that on the test images; of the depthwise net alone
    solvers    at the bytes of uniform 3 and 4 bits: the program on each proxy, greedy, evolution from the program's answer and from
               uniform bits, rules of thumb; uniform and program with ranges up to the largest weight; on the test images
    grids      at the same bytes: for each layer and width the range, by least error or up to the largest weight, that has the smaller KL
               alone; uniform bits, and the program; on the test images
    seeds      the two evolutions at 3 bits again with other seeds, on the test images; of the depthwise net alone
    costs      the program on KL under budgets of bytes, of bit operations, of milliseconds: each what uniform 3 bits cost; on the test
               images. Milliseconds are of a batch of 32 images and one thread: it waits until the machine is quiet
    rounding   nearest, corrected, GPTQ and AdaRound, at 2, 3 and 4 bits for all layers, and at the program's bits for the bytes of 2.5
               and 3; on the test images
    overfit    evolution on 256 of the calibration images, by KL and by the number of wrong answers, from the program's bits: each new
               best one on these images, and on others that the search does not see; of the depthwise net alone
    auto       qlab.search.auto at the bytes of uniform 3 bits, judged by 7,488 other training images; how long it takes, so it waits
               until the machine is quiet; on the test images

Symmetric weights, a scale per channel, ranges by least squared error, 2 to 8 bits; batch norm folded; activations in float32. Proxies see
calibration images, none of which is a test image.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import torch

from qlab.lab import data, quiet, runs, zoo
from qlab.lab.data import Split
from qlab.lab.measure import accuracy
from qlab.lab.ranks import spearman
from qlab.llm.weights import round_to_nearest
from qlab.nets import ptq
from qlab.search import allocate, auto, candidates, costs, curvature, evolution, kernels, rounding, sensitivity
from qlab.search.table import Table

NETS, BUDGETS, BATCH, OTHERS, HELD_OUT = ("depthwise", "cnn"), (3, 4), 32, 2000, 7488
PROBES, EVALUATIONS, LATENCY_REPEATS, CHOOSERS, FEW, SEEDS = 32, 150, 100, 1000, 256, (1, 2)
SWEEP = [2 + step / 4 for step in range(13)]                                                # bits a weight, in the mean
PROXIES = {
    "loss": lambda m, c, x, y: sensitivity.by_loss(m, c, x, y), "kl": lambda m, c, x, y: sensitivity.by_kl(m, c, x),
    "output": lambda m, c, x, y: sensitivity.by_output(m, c, x), "weight": lambda m, c, x, y: sensitivity.by_weight(m, c),
    "hessian": lambda m, c, x, y: curvature.by_hessian(m, c, x, y, PROBES), "fisher": lambda m, c, x, y: curvature.by_taylor(m, c, x),
    "gradient": lambda m, c, x, y: curvature.by_taylor(m, c, x, y, kind="absolute"),
}
Rows = Iterator[tuple[str, dict]]


class Subject:
    """A network, folded, its candidates, calibration images, other training images, and each proxy's table, made when it is asked for."""

    def __init__(self, net: str, images: int, ranges: str):
        self.net, self.model = net, ptq.fold_batch_norm(zoo.load(net))
        self.made = candidates.make(self.model, how=partial(round_to_nearest, ranges=ranges))
        both = data.calibration(images + OTHERS)
        self.images, self.labels = (part[:images] for part in both)
        self.others = Split(*(part[images:] for part in both))
        self.nbytes, self.bitops = costs.nbytes(self.made), costs.bitops(self.model, self.made, self.images[:1])
        self.before = sensitivity.logits_of(self.model, self.images)
        self.cpu_s = {}

    @lru_cache  # noqa: B019 - there are four subjects, and they live as long as the program
    def table(self, proxy: str) -> Table:
        started = time.process_time()
        found = PROXIES[proxy](self.model, self.made, self.images, self.labels)
        self.cpu_s[proxy] = round(time.process_time() - started, 1)
        return found

    def applied(self, allocation: dict[str, int]) -> ptq.Quantized:
        return candidates.apply(self.model, self.made, allocation)

    def network(self, allocation: dict[str, int]):
        return self.applied(allocation).model

    def kl(self, allocation: dict[str, int]) -> float:
        """The true one, on the calibration images."""
        return self.kl_of(self.network(allocation))

    def kl_of(self, network) -> float:
        return sensitivity.divergence(sensitivity.logits_of(network, self.images), self.before).mean().item()

    def uniform(self, bits: int) -> dict[str, int]:
        return dict.fromkeys(self.made, bits)

    def program(self, cost: Table, bits: float, proxy: str = "kl") -> dict[str, int]:
        """The optimum at what so many bits for all layers cost, where 2.5 stands for the mean of 2 and 3."""
        below = int(bits)
        low, high = (cost(self.uniform(b)) for b in (below, below + 1))
        return allocate.exact(self.table(proxy), cost, low + (bits - below) * (high - low))


@lru_cache(maxsize=4)
def subject(net: str, images: int, ranges: str = "mse") -> Subject:
    return Subject(net, images, ranges)


def random_allocations(of: Table, budget: float, count: int, seed: int = 0) -> list[dict[str, int]]:
    """Different ones, every layer's bits drawn alike, that cost 95 to 100 % of the budget: so that bytes decide nothing. At most count: as
    many as a million draws find."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for _ in range(100):
        if len(found) >= count:
            break
        places = torch.randint(0, len(of.widths), (10_000, len(of.layers)), generator=generator)
        spent = of.values[torch.arange(len(of.layers)), places].sum(1)
        for row in places[(spent <= budget) & (spent >= 0.95 * budget)].tolist():
            found[tuple(row)] = {name: of.widths[j] for name, j in zip(of.layers, row)}
    return list(found.values())[:count]


def proxies(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    chosen = random_allocations(s.nbytes, s.nbytes(s.uniform(4)), options.allocations)
    networks = (s.network(bits) for bits in chosen)
    found = [(s.kl_of(network), accuracy(network, s.others)) for network in networks]
    truth = {"kl": torch.tensor([kl for kl, _ in found]), "accuracy": torch.tensor([right.value for _, right in found])}
    yield "truth", {"allocations": [list(bits.values()) for bits in chosen], "kl": truth["kl"].tolist(),
                    "others": [runs.outcome(right) for _, right in found]}
    best = max(range(len(found)), key=lambda i: int(found[i][1].correct[:CHOOSERS].sum()))
    for name, bits in {"winner": chosen[best], "4 bits": s.uniform(4)}.items():
        yield name, measured(s, bits, options.tests, others=runs.outcome(accuracy(s.network(bits), s.others)))
    for name in PROXIES:
        table = s.table(name)
        predicted = torch.tensor([table(bits) for bits in chosen])
        yield name, {"values": table.values.tolist(), "errors": None if table.errors is None else table.errors.tolist(),
                     "forwards": table.forwards, "backwards": table.backwards, "cpu_s": s.cpu_s[name], "predicted": predicted.tolist(),
                     "rank_kl": spearman(predicted, truth["kl"]), "rank_accuracy": spearman(predicted, -truth["accuracy"])}


def measured(s: Subject, allocation: dict[str, int], tests: int, network=None, **more) -> dict:
    """A row: bits by layer, true bytes of the weights, the KL predicted and true, which test images are right. network: with other codes
    than the nearest."""
    network = network or s.network(allocation)
    return {"bits": list(allocation.values()), "nbytes": round(s.nbytes(allocation)), "predicted_kl": s.table("kl")(allocation),
            "kl": s.kl_of(network), **more, **runs.outcome(accuracy(network, _test(tests)))}


def _test(tests: int) -> Split:
    return Split(*(part[:tests] for part in data.load("test")))


def budgets(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    whole, few = accuracy(s.model, _test(options.tests)), Split(*(part[:CHOOSERS] for part in s.others))
    base = accuracy(s.model, few).value
    drops = Table.from_rows({name: {bits: base - accuracy(candidates.apply(s.model, s.made, {name: bits}).model, few).value
                                    for bits in of_layer} for name, of_layer in s.made.items()})
    yield "float", {"layers": list(s.made), "drops": drops.values.tolist(), **runs.outcome(whole)}
    for name, cost in {"bytes": s.nbytes, "bit operations": s.bitops}.items():
        for bits in SWEEP:
            found = s.program(cost, bits)
            yield f"{name}, {bits:g} bits", measured(s, found, options.tests, bitops=round(s.bitops(found)),
                                                     predicted=whole.value - drops(found))


def solvers(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    evolve = partial(evolution.evolve, s.kl, s.nbytes, widths=s.nbytes.widths, evaluations=options.evaluations)
    for bits in BUDGETS:
        uniform = s.uniform(bits)
        budget, kl = s.nbytes(uniform), s.table("kl")
        ways = {"uniform": uniform, "greedy, kl": allocate.greedy(kl, s.nbytes, budget)}
        ways |= {f"program, {name}": allocate.exact(s.table(name), s.nbytes, budget) for name in PROXIES}
        first, last = list(uniform)[0], list(uniform)[-1]
        ways |= {"first at 8": uniform | {first: 8}, "first and last at 8": uniform | {first: 8, last: 8}}
        if net == "depthwise":
            ways["first at 8, depthwise one more"] = {n: bits + 1 if "depthwise" in n else b for n, b in (uniform | {first: 8}).items()}
        for name, allocation in ways.items():
            yield f"{bits} bits: {name}", measured(s, allocation, options.tests)
        wide = subject(net, options.images, "max")
        for name, allocation in {"uniform": uniform, "program, kl": allocate.exact(wide.table("kl"), wide.nbytes, budget)}.items():
            yield f"{bits} bits: {name}, ranges by max", measured(wide, allocation, options.tests)
        for name, start in {"program, kl": ways["program, kl"], "uniform": uniform}.items():
            found = evolve(budget, start)
            yield f"{bits} bits: evolution from {name}", measured(s, found.allocation, options.tests, history=found.history)


def grids(net: str, options: argparse.Namespace) -> Rows:
    near, wide = (subject(net, options.images, ranges) for ranges in ("mse", "max"))
    better = near.table("kl").values <= wide.table("kl").values                             # (layers, widths)
    both = copy.copy(near)
    both.made = {name: {bits: (near if own else wide).made[name][bits] for bits, own in zip(near.nbytes.widths, row)}
                 for name, row in zip(near.made, better.tolist())}
    yield "by least error", {"chosen": better.tolist()}
    for bits in BUDGETS:
        uniform = both.uniform(bits)
        ways = {"uniform": uniform, "program, kl": allocate.exact(both.table("kl"), both.nbytes, both.nbytes(uniform))}
        for name, allocation in ways.items():
            yield f"{bits} bits: {name}", measured(both, allocation, options.tests)


def seeds(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    for seed in SEEDS:
        for name, start in {"program, kl": s.program(s.nbytes, BUDGETS[0]), "uniform": s.uniform(BUDGETS[0])}.items():
            found = evolution.evolve(s.kl, s.nbytes, s.nbytes(s.uniform(BUDGETS[0])), start, s.nbytes.widths, options.evaluations,
                                     seed=seed)
            yield f"evolution from {name}, {seed}", measured(s, found.allocation, options.tests, history=found.history)


def cost_models(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    watch = quiet.wait(anyway=options.busy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    latency = costs.latency(kernels.of(s.model, s.images[:BATCH]), s.nbytes.widths, LATENCY_REPEATS)
    torch.set_num_threads(threads)
    yield "latency", {"ms": latency.values.tolist(), "errors": latency.errors.tolist(), "batch": BATCH, "load": watch.load()}
    tables = {"bytes": s.nbytes, "bit operations": s.bitops, "milliseconds": latency}
    for name, table in tables.items():
        found = s.program(table, BUDGETS[0])
        yield f"budget of {name}", measured(s, found, options.tests, budget=table(s.uniform(BUDGETS[0])),
                                            spent={n: t(found) for n, t in tables.items()})


def roundings(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    ways = {f"{bits} bits": s.uniform(bits) for bits in (2, 3, 4)}
    ways |= {f"program, {bits:g} bits": s.program(s.nbytes, bits) for bits in (2.5, 3)}
    for name, allocation in ways.items():
        for method in rounding.METHODS:
            started = time.process_time()
            made = rounding.quantize(s.model, s.images, allocation, method)
            yield f"{name}: {method}", measured(s, allocation, options.tests, made.model,
                                                cpu_s=round(time.process_time() - started, 1))


def overfit(net: str, options: argparse.Namespace) -> Rows:
    s = subject(net, options.images)
    seen = Split(s.images[:FEW], s.labels[:FEW])
    judges = {"kl": lambda network, of: sensitivity.kl(s.model, network, of.images).mean().item(),
              "wrong": lambda network, of: 1 - accuracy(network, of).value}
    for name, judge in judges.items():
        bests = []                                                                          # each allocation better than all before it

        def evaluate(allocation: dict[str, int], judge=judge, bests=bests) -> float:
            value = judge(s.network(allocation), seen)
            if not bests or value < bests[-1][1]:
                bests.append((allocation, value))
            return value

        start = s.program(s.nbytes, BUDGETS[0])
        found = evolution.evolve(evaluate, s.nbytes, s.nbytes(start), start, s.nbytes.widths, options.evaluations)
        yield name, {"history": found.history, "found": [value for _, value in bests],
                     "others": [judge(s.network(allocation), s.others) for allocation, _ in bests], "images": len(seen.images)}


def automatic(net: str, options: argparse.Namespace) -> Rows:
    s, calibration, test = subject(net, options.images), data.calibration(options.images + HELD_OUT), _test(options.tests)
    budget = s.applied(s.uniform(BUDGETS[0])).nbytes
    watch = quiet.wait(anyway=options.busy)
    wall, cpu = time.perf_counter(), time.process_time()
    found = auto.quantize(zoo.load(net), calibration, budget=budget)
    yield "auto", {"budget": budget, "nbytes": found.quantized.nbytes, "wall_s": round(time.perf_counter() - wall),
                   "cpu_s": round(time.process_time() - cpu), "load": watch.load(), "held_out": HELD_OUT,
                   "chosen": found.chosen.name, "reason": found.reason, "tried": [trial.name for trial in found.trials],
                   **runs.outcome(accuracy(found.quantized.model, test))}


PARTS: dict[str, Callable[[str, argparse.Namespace], Rows]] = {
    "proxies": proxies, "budgets": budgets, "solvers": solvers, "grids": grids, "seeds": seeds, "costs": cost_models,
    "rounding": roundings, "overfit": overfit, "auto": automatic}
DEPTHWISE_ALONE = ("budgets", "seeds", "overfit")                                           # the cnn has little to gain, and little to show


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="only these, beside what the record holds")
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--allocations", type=int, default=200, help="random ones, of the part proxies")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="of an evolution")
    parser.add_argument("--tests", type=int, default=10_000, help="test images")
    parser.add_argument("--nets", nargs="+", default=NETS, choices=NETS)
    parser.add_argument("--folder", type=Path, default=runs.FOLDER, help="where the record is")
    quiet.add_option(parser)
    options = parser.parse_args(arguments)
    for part in options.part or PARTS:
        for net in options.nets if part not in DEPTHWISE_ALONE else NETS[:1]:
            done = {}
            for name, row in PARTS[part](net, options):
                done[name] = row
                _write(part, net, done, options)
                print(part, net, name, {k: v for k, v in row.items() if not isinstance(v, (list, tuple, str, dict))}, flush=True)


def _write(part: str, net: str, rows: dict, options: argparse.Namespace) -> None:
    """Put the rows of one part and network into the record; the rest of it stays."""
    try:
        found = runs.raw("search", options.folder)
    except FileNotFoundError:
        found = {}
    parts = {name: found.get(name, {}) for name in PARTS if name in found or name == part}
    parts[part] = parts[part] | {net: rows}
    runs.write("search", "python -m qlab.lab.experiments.search", options.folder, calibration_images=options.images,
               test_images=options.tests, probes=PROBES, checkpoints={name: zoo.record(name)["sha256"] for name in NETS}, **parts)


if __name__ == "__main__":
    main()
