"""The experiments behind notebook 08: LeNet-300-100 trained in float16 and bfloat16, with and without each ingredient.

    python -m qlab.lab.experiments.mixed_precision              all parts, about five minutes on one core
    python -m qlab.lab.experiments.mixed_precision rate         one of them again: equal, weight or rate
    python -m qlab.lab.experiments.mixed_precision speed        the times of a training step, on the CPU or with --device cuda; the
                                                                command waits until the machine is quiet

    equal    float32 with six seeds, float16 with five, torch.autocast with GradScaler, float16 without scaling, bfloat16
    weight   the loss times 2^-k, the learning rate times 2^k: in float32 the same training, in float16 only with scaling
    rate     smaller and smaller learning rates, with master weights and without

Learning rate and weight decay are those of the zoo's recipe for this network; batches of 128, no augmentation, all 60,000 training
images. Which of the 10,000 test images were right is kept for every run, and a checksum of its weights.

A CPU without 16-bit arithmetic takes ten times as long for a product of halves as for one of floats. So here each such product is computed
from the same halves, converted, with sums in float32, and rounded to half once (HalfProducts): what a tensor core does, and what the
CPU's own half products do one number at a time. The arm "float16, native" is computed by those, to show that it makes no difference.

speed writes records/mixed_precision_speed.json, one entry for each processor, and keeps the entries of others. A step is what a training
with torch.autocast does for one batch: forward, loss in float32, backward, SGD with momentum; for float16 scaled and checked by
GradScaler. The network is a perceptron 784-w-w-10: small ones are bound by the start of each operation or by the memory that the update of
the weights moves, large ones by their products. On a CPU one thread computes; a GPU also shows float32 with products in TF32, which is
the least that it takes to use its tensor cores.
"""

import argparse
import gc
import hashlib
import math
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from qlab.lab import data, machine, quiet, runs, zoo
from qlab.lab.measure import accuracy, latency_ms
from qlab.nets.half import HALVES
from qlab.nets.mixed_precision import LossScale, Run, train, train_autocast
from qlab.nets.models import lenet_300_100
from qlab.nets.training import fit

NAME, BATCH_SIZE = "mixed_precision", 128
RECIPE = {key: zoo.RECIPE["lenet300"][key] for key in ("max_lr", "weight_decay")}
SCALER = LossScale(2.0**16, interval=200)                       # 200, for a run has fewer than GradScaler's 2,000 steps
DTYPE = {"float16": torch.float16, "bfloat16": torch.bfloat16}
EQUAL = {  # arm: (seeds, how it is trained); bfloat16 is never scaled
    "float32": (range(6), {}),
    "float16": (range(5), {"half": "float16", "scaler": SCALER}),
    "autocast": (range(2), {"half": "float16", "scaler": SCALER, "autocast": True}),
    "float16, native": (range(1), {"half": "float16", "scaler": SCALER, "native": True}),
    "float16, no scaling": (range(3), {"half": "float16"}),
    "bfloat16": (range(3), {"half": "bfloat16"}),
}
WEIGHTS = {"float16, no scaling": (0, 8, 12, 14, 16, 18, 20), "float16": (0, 14, 20), "bfloat16": (20,), "float32": (0, 20)}
RATES = (0.05, 0.01, 0.002, 0.0005)
RATE_ARMS = {
    "float32": {}, "float16": {"half": "float16", "scaler": SCALER}, "bfloat16": {"half": "bfloat16"},
    "float16, no master": {"half": "float16", "scaler": SCALER, "master": False},
    "bfloat16, no master": {"half": "bfloat16", "master": False},
}
WIDTHS, BATCHES = (256, 1024, 4096, 16384), (128, 1024, 8192)
SLOW_S = 4


class HalfProducts(TorchDispatchMode):
    """Inside `with HalfProducts():` a matrix product of halves has sums in float32 and is rounded once; all else is as it was."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and args[0].dtype in HALVES:
            return function(*(a.float() for a in args), **(kwargs or {})).to(args[0].dtype)
        return function(*args, **(kwargs or {}))


@cache  # equal and rate share three rows
def row(arm: str, seed: int, epochs: int, max_lr: float, log_weight: int = 0, half: str | None = None,
        scaler: LossScale | None = None, master: bool = True, autocast: bool = False, native: bool = False) -> dict:
    """Train one network, look at the test images once, and say what happened; log_weight k: the loss times 2^-k."""
    (images, labels), weight = data.load("train"), 2.0**-log_weight
    torch.manual_seed(seed)
    model = lenet_300_100()
    settings = {"epochs": epochs, "max_lr": max_lr / weight, "weight_decay": RECIPE["weight_decay"] * weight, "seed": seed,
                "batch_size": BATCH_SIZE, "name": f"{arm}, seed {seed}, lr {max_lr:g}, loss x 2^-{log_weight}"}
    if half is None:
        losses = fit(model, images, labels, **settings, loss=lambda model, x, y: weight * cross_entropy(model(x), y))
        run = Run(model, losses, [], [])
    else:
        function = train_autocast if autocast else lambda *arguments, **keywords: train(*arguments, master=master, **keywords)
        with nullcontext() if native else HalfProducts():
            run = function(model, images, labels, **settings, half=DTYPE[half], scaler=scaler,
                           loss=lambda logits, y: weight * cross_entropy(logits, y))
    steps = math.ceil(len(images) / BATCH_SIZE)
    per_epoch = run.losses if half is None else [sum(run.losses[e * steps:(e + 1) * steps]) / steps for e in range(epochs)]
    changes = [[step, scale] for step, scale in enumerate(run.scales) if step == 0 or scale != run.scales[step - 1]]
    return {"arm": arm, "seed": seed, "epochs": epochs, "max_lr": max_lr, "log_weight": log_weight,
            "losses": [round(value / weight, 5) if math.isfinite(value) else None for value in per_epoch], "steps": steps * epochs,
            "scales": changes, "skipped": run.skipped, "weights_sha256": checksum(model),
            "test": runs.outcome(accuracy(model, data.load("test")))}


def checksum(model: torch.nn.Module) -> str:
    """sha256 of all parameters' bytes: equal only for networks that are equal bit for bit."""
    return hashlib.sha256(b"".join(p.detach().contiguous().numpy().tobytes() for p in model.parameters())).hexdigest()


def equal():
    """One row for each arm and seed, two epochs."""
    for arm, (seeds, how) in EQUAL.items():
        for seed in seeds:
            yield row(arm, seed, 2, RECIPE["max_lr"], **how)


def weight():
    """One epoch each. What 2^-k takes from the gradient the learning rate gives back; weight decay shrinks too: the same updates."""
    for arm, exponents in WEIGHTS.items():
        for k in exponents:
            yield row(arm, 0, 1, RECIPE["max_lr"], log_weight=k, **EQUAL[arm][1])


def rate():
    """Two epochs each."""
    for max_lr in RATES:
        for arm, how in RATE_ARMS.items():
            yield row(arm, 0, 2, max_lr, **how)


def perceptron_step(width: int, batch: int, dtype: str, device: str):
    """A function that takes one training step: dtype is float32, bfloat16, float16, or tf32 (float32 with products in TF32)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)).to(device)
    x, y = torch.randn(batch, 784, device=device), torch.randint(10, (batch,), device=device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(device, enabled=dtype == "float16")

    def step():
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        optimiser.zero_grad()
        with torch.autocast(device, DTYPE.get(dtype), enabled=dtype in DTYPE):
            logits = model(x)
        scaler.scale(cross_entropy(logits.float(), y)).backward()
        scaler.step(optimiser)
        scaler.update()
    return step


def step_flop(width: int, batch: int) -> int:
    """Of a step's products: 2 for each weight and image forward, and twice that backward, less the gradient of the images."""
    first, rest = 784 * width, width * (width + 10)
    return batch * (4 * first + 6 * rest)


def step_time(width: int, batch: int, dtype: str, device: str, seconds: float = 0.2) -> dict[str, float]:
    """Milliseconds of a step, the best of what fits into the seconds, but of one at least; on a GPU also the most memory held, in MB."""
    if device == "cuda":
        gc.collect()                                            # what an earlier network has left
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = perceptron_step(width, batch, dtype, device)
    once = latency_ms(step, warmup=2, repeats=1, min_sample_ms=10).median_ms
    more = min(20, int(1000 * seconds / max(once, 10)))
    samples = latency_ms(step, warmup=1, repeats=more, min_sample_ms=10).samples_ms if more else ()
    peak = {"peak_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)} if device == "cuda" else {}
    return {"ms": float(f"{min([once, *samples]):.4g}"), **peak}


def speed(device: str, folder: Path = runs.FOLDER, widths=WIDTHS, batches=BATCHES, rounds: int = 3, anyway: bool = False) -> None:
    """Time every size, the data types in turn, and put this processor's entry into the record after each, with how busy others kept it.

    Left out is what would take longer than SLOW_S a step, judged by the size before: the largest networks on a CPU, and most of them
    in a data type that it has no instructions for. anyway: on a busy machine too, without waiting for a quiet one.
    """
    name, watch = f"{NAME}_speed", quiet.wait(anyway)
    torch.set_num_threads(1)
    environment, rows = machine.environment(), []
    dtypes = ("float32", *(["tf32"] if device == "cuda" else []), "bfloat16", "float16")
    ms_per_flop = dict.fromkeys(dtypes, 0.0)
    for width, batch, flop in ((w, b, step_flop(w, b)) for w in widths for b in batches):
        timed = [dtype for dtype in dtypes if ms_per_flop[dtype] * flop <= 1000 * SLOW_S]
        taken = [{dtype: step_time(width, batch, dtype, device) for dtype in timed} for _ in range(rounds if timed else 0)]
        if not taken:
            continue
        times = {dtype: min((one[dtype] for one in taken), key=lambda time: time["ms"]) for dtype in timed}
        ms_per_flop |= {dtype: time["ms"] / flop for dtype, time in times.items()}
        rows.append({"width": width, "batch": batch, "flop": flop, "times": times})
        print(f"width {width}, batch {batch}:", ", ".join(f"{dtype} {time['ms']:g} ms" for dtype, time in times.items()), flush=True)
        kept = runs.raw(name, folder)["processors"] if (folder / f"{name}.json").exists() else {}
        entry = {"device": device, "environment": environment, "load": watch.load(), "rows": rows}
        runs.write(name, f"python -m qlab.lab.experiments.{NAME} speed --device {device}", folder, network="784-w-w-10, ReLU",
                   optimiser="SGD, Nesterov momentum 0.9", processors=kept | {environment["cuda" if device == "cuda" else "cpu"]: entry})


PARTS = {"equal": equal, "weight": weight, "rate": rate}


def main(parts=tuple(PARTS)) -> None:
    """Run the parts; the record is written after each row, and keeps what it holds of other parts."""
    kept = runs.raw(NAME) if (runs.FOLDER / f"{NAME}.json").exists() else {}
    content = {part: kept[part] for part in PARTS if part in kept}
    for part in parts:
        content[part] = []
        for entry in PARTS[part]():
            content[part].append(entry)
            runs.write(NAME, f"python -m qlab.lab.experiments.{NAME}", architecture="qlab.nets.models.lenet_300_100",
                       optimiser="SGD, Nesterov momentum 0.9, one-cycle learning rate", batch_size=BATCH_SIZE, **RECIPE,
                       scaler={"scale": SCALER.scale, "interval": SCALER.interval}, **content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train LeNet-300-100 in mixed precision, with and without each ingredient, "
                                                 "and write records/mixed_precision.json; or time a training step.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which parts to run: {', '.join(PARTS)} (default: these), or speed alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where speed runs (default: cpu)")
    quiet.add_option(parser)
    arguments = parser.parse_args()
    parts = arguments.parts
    if unknown := set(parts) - {*PARTS, "speed"}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}, speed.")
    if "speed" in parts and len(parts) > 1:
        parser.error("speed is a run of its own: name no other part beside it.")
    if arguments.device == "cuda" and (parts != ["speed"] or not torch.cuda.is_available()):
        parser.error("--device cuda is for speed, on a machine where PyTorch finds a CUDA device.")
    if parts == ["speed"]:
        speed(arguments.device, anyway=arguments.busy)
    else:
        main(parts or tuple(PARTS))
