"""The runs behind notebook 07: the depthwise net on 4, 3 and 2 bits (weights and activations), quantized after training or trained for it.

    python -m qlab.lab.experiments.qat list                              the names of all runs, the most important first
    python -m qlab.lab.experiments.qat run lsq-channel 4 0               one run: arm, bits, seed; about 15 minutes of one core
    python -m qlab.lab.experiments.qat run ptq 4 0                       all of post-training quantization at 4 bits; as long
    python -m qlab.lab.experiments.qat collect                           the record, and the networks that the notebook needs

Each run writes a file of its own into --folder as it ends, so that many can run side by side:
`... list | xargs -L1 -P14 env OMP_NUM_THREADS=1 python -m qlab.lab.experiments.qat run --device cuda`. What has no file there stays in the
record as it is.

Every arm starts from the zoo's network and is trained equally long on the same images in the same order: 3 epochs, then one at a small
learning rate with batch norm's statistics frozen. The activations of all arms start with the same ranges (mse, 512 calibration images).

    control         in float32: what more training alone brings; its bits are given as 32
    lsq-*           the steps of weights and activations are learned
    ste-*           a weight's step follows max|w|; the activations' ranges stay as calibrated
    moving-*        as ste, and the activations' ranges follow the batches' extremes (Jacob et al. 2018, section 3.1)
    mse-*           as lsq, but a weight's step starts where its squared error is least, and not at 2 mean|w| / sqrt(Q)
    fixed-*         the steps with which LSQ starts, and they stay: what learning them brings beyond a good start

Post-training quantization is the best that the library can do: every combination of rounding, weight range, activation range and repairs
is tried on 2,000 training images that calibration has not seen, and the best three of each rounding meet on 10,000 others; the test
images see only the winner, the best that rounds to nearest, and the plainest. GPTQ and AdaRound (qlab.search.rounding) have a scale a
channel, so one for the tensor is rounded to nearest.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import time
from pathlib import Path

import torch

from qlab import saving
from qlab.lab import data, runs, zoo
from qlab.lab.measure import Accuracy, accuracy, size_bytes
from qlab.nets import ptq, qat
from qlab.nets.equalize import cross_layer_equalize
from qlab.nets.graph import trace
from qlab.nets.training import fit
from qlab.quant import linear, ranges
from qlab.search import rounding

NET, CALIBRATION_IMAGES, CHOICE_IMAGES, FINAL_IMAGES, FINALISTS = "depthwise", 512, 2000, 10_000, 3
EPOCHS, MAX_LR = (3, 1), (0.02, 0.0005)                                                     # then with batch norm frozen
AXES = {"tensor": None, "channel": 0}
ARMS = {  # how the scales are set
    "lsq": {"learned": True}, "ste": {"learned": False}, "moving": {"learned": False, "moving": True},
    "mse": {"learned": True}, "fixed": {"learned": True},
}
MAIN = ("lsq-channel", "ste-channel", "lsq-tensor", "ste-tensor")
KEPT = ("lsq-channel", "lsq-tensor")                                                        # 4 bits, seed 0: the notebook looks inside
SEEDS = (0, 1, 2)
OPTIONS = ("equalize", "rounding", "weights", "activations", "correct_bias")                # of post-training quantization
ROUNDINGS = {"tensor": ("nearest",), "channel": ("nearest", "gptq", "adaround")}
FOLDER = Path("qat-runs")
WEIGHTS = {  # the range of a weight
    "max": lambda w, bits, axis: ranges.minmax(w, axis), "mse": lambda w, bits, axis: ranges.mse(w, bits, "symmetric", axis),
}


def names() -> list[tuple[str, int, int]]:
    """All runs: arm, bits, seed; the most important first. Seeds of post-training quantization: none, it has no chance in it."""
    order = [[("control", 32)]] + [[(arm, bits) for arm in MAIN] for bits in (4, 3, 2)]
    order += [[(arm, bits)] for arm in ("mse-channel", "fixed-channel", "moving-channel") for bits in (4, 3, 2)]
    return [("ptq", bits, 0) for bits in (4, 3, 2)] + [(*run, seed) for block in order for run in block for seed in SEEDS]


def prepared(arm: str, bits: int, calibration: torch.Tensor | None = None, activations: str = "mse"):
    """The network of an arm before its training: fake quantizers in place, activation ranges from the calibration images."""
    kind, per = arm.split("-")
    images = data.calibration(CALIBRATION_IMAGES).images if calibration is None else calibration
    model = qat.prepare(zoo.load(NET), images, bits, bits, axis=AXES[per], ranges=activations, **ARMS[kind])
    if kind == "mse":
        for layer in model.modules():
            if isinstance(layer, qat.QuantizedLayer):
                low, high = WEIGHTS["mse"](layer.folded().detach(), bits, AXES[per])
                layer.quantizer.scale.data = (torch.maximum(-low, high) / layer.quantizer.top).clamp(min=1e-12)
    if kind == "fixed":
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] == "scale":
                parameter.requires_grad_(False)
    return model


def trained(arm: str):
    """The network of an arm after its training at 4 bits, seed 0, from the committed checkpoint: the input of qat.convert."""
    few = data.calibration(16).images                                                       # the checkpoint has ranges of its own
    model = prepared(arm, 4, few, "minmax")
    return runs.load_model(f"qat_{arm}", model, runs.raw("qat")["arms"][arm]["4"]["0"]["sha256"])


def train(arm: str, bits: int, seed: int, device: str, folder: Path) -> dict:
    """Train one arm and look at the test images once."""
    started, control = time.time(), arm == "control"
    model = zoo.load(NET).requires_grad_(True) if control else prepared(arm, bits)
    images, labels = (part.to(device) for part in data.load("train"))
    model, learn, losses = model.to(device), fit if control else qat.train, []
    for phase, (epochs, max_lr) in enumerate(zip(EPOCHS, MAX_LR)):
        if phase == 1 and not control:
            qat.freeze(model)
        losses += learn(model, images, labels, epochs, max_lr, seed=10 * seed + phase, augment=zoo.augment, name=f"{arm} {bits} {seed}")
    model = model.cpu()
    if control:
        deployed, nbytes = model, size_bytes(ptq.fold_batch_norm(model))
    else:
        quantized = qat.convert(model)
        deployed, nbytes = quantized.model, quantized.nbytes
    result = accuracy(copy.deepcopy(deployed).to(device), data.load("test"))
    return {"losses": losses, "minutes": round((time.time() - started) / 60, 2), "nbytes": nbytes,
            "sha256": runs.save_model(f"qat_{arm}_{bits}_{seed}", model, folder), **runs.outcome(result)}


class AfterTraining:
    """Post-training quantization at so many bits, by any of OPTIONS, and the images that it may see."""

    def __init__(self, bits: int, device: str):
        sizes = (CALIBRATION_IMAGES, CHOICE_IMAGES, FINAL_IMAGES)
        images, labels = data.calibration(sum(sizes))
        calibration, self.choice, self.final = map(data.Split, images.split(sizes), labels.split(sizes))
        self.bits, self.device, self.calibration = bits, device, calibration.images.to(device)
        self.networks = {equalize: trace(ptq.fold_batch_norm(zoo.load(NET).to(device))) for equalize in (False, True)}
        cross_layer_equalize(self.networks[True])
        self.weights = functools.lru_cache(self.weights)

    def weights(self, per: str, equalize: bool, how: str, limits: str):
        """What ptq.quantize takes as weights."""
        if how == "nearest":
            def codes(w):
                low, high = WEIGHTS[limits](w, self.bits, AXES[per])
                return linear.quantize(w, self.bits, "symmetric", axis=AXES[per], x_min=low, x_max=high)
            return codes
        made = rounding.quantize(self.networks[equalize], self.calibration, self.bits, how, ranges=limits)
        return {name: lambda _, q=q: q for name, q in made.tensors.items()}

    def judged(self, split: data.Split, per, equalize, rounding, weights, activations, correct_bias, **_) -> tuple[int, Accuracy]:
        """The bytes, and the accuracy on these images."""
        q = ptq.quantize(self.networks[equalize], self.calibration, self.weights(per, equalize, rounding, weights), self.bits, activations,
                         correct_bias=correct_bias)
        return q.nbytes, accuracy(q.model.to(self.device), split)


def tries(made: AfterTraining, per: str) -> list[dict]:
    """All combinations of OPTIONS, the plainest first, with the number of right answers among the images that choose."""
    tried = []
    for combination in itertools.product((False, True), ROUNDINGS[per], WEIGHTS, ptq.RANGES, (False, True)):
        options = {"per": per, **dict(zip(OPTIONS, combination))}
        tried.append({**options, "correct_of_choice": int(made.judged(made.choice, **options)[1].correct.sum())})
        print(made.bits, tried[-1], flush=True)
    return tried


def judge(made: AfterTraining, tried: list[dict]) -> dict:
    """The plainest, the best that rounds to nearest and the best of all on the test images, and all that were tried.

    The best few of each rounding meet again on more images: the best of so many on 2,000 is partly the luckiest.
    """
    for how in {entry["rounding"]: None for entry in tried}:
        for entry in sorted((e for e in tried if e["rounding"] == how), key=lambda entry: -entry["correct_of_choice"])[:FINALISTS]:
            entry["correct_of_final"] = int(made.judged(made.final, **entry)[1].correct.sum())
    final = sorted((entry for entry in tried if "correct_of_final" in entry), key=lambda entry: -entry["correct_of_final"])
    chosen = {"plain": tried[0], "nearest": next(entry for entry in final if entry["rounding"] == "nearest"), "best": final[0]}
    found = {}
    for name, entry in chosen.items():
        nbytes, result = made.judged(data.load("test"), **entry)
        found[name] = {**entry, "nbytes": nbytes, **runs.outcome(result)}
    return found | {"tried": tried}


def after_training(bits: int, device: str) -> dict:
    """By axis: what was tried of post-training quantization, and what was chosen."""
    made = AfterTraining(bits, device)
    return {per: judge(made, tries(made, per)) for per in AXES}


def run(arm: str, bits: int, seed: int, device: str, folder: Path) -> None:
    """One run, and its file in the folder."""
    torch.backends.cudnn.allow_tf32 = False                                                 # products of codes are exact in float32
    result = after_training(bits, device) if arm == "ptq" else train(arm, bits, seed, device, folder)
    runs.write(f"{arm}-{bits}-{seed}", f"python -m qlab.lab.experiments.qat run {arm} {bits} {seed}", folder, device=device, result=result)


def collect(folder: Path, into: Path = runs.FOLDER) -> None:
    """The record from the runs in the folder, and the checkpoints that the notebook needs."""
    done = {name: runs.raw("-".join(map(str, name)), folder) for name in names() if (folder / f"{'-'.join(map(str, name))}.json").exists()}
    content, machines = {"ptq": {}, "control": {}, "arms": {}}, {}
    with contextlib.suppress(FileNotFoundError):
        before = runs.raw("qat", into)
        content, machines = {key: before[key] for key in content}, before["ran_on"]
    for (arm, bits, seed), entry in done.items():
        result = entry["result"] | ({} if arm == "ptq" else {"device": entry["device"]})    # a key of ran_on
        if arm == "ptq":
            content["ptq"][str(bits)] = result
        elif arm == "control":
            content["control"][str(seed)] = result
        else:
            content["arms"].setdefault(arm, {}).setdefault(str(bits), {})[str(seed)] = result
    into.mkdir(parents=True, exist_ok=True)
    for arm in KEPT:
        if (arm, 4, 0) in done:
            saving.write({into / f"qat_{arm}.safetensors": saving.read(folder / f"qat_{arm}_4_0.safetensors")})
    whole = zoo.load(NET)
    machines |= {entry["device"]: entry["environment"] for (arm, _, _), entry in done.items() if arm != "ptq"}  # whose rows name no device
    runs.write("qat", "python -m qlab.lab.experiments.qat collect", into, net=NET, checkpoint=zoo.record(NET)["sha256"], epochs=EPOCHS,
               max_lr=MAX_LR, calibration_images=CALIBRATION_IMAGES, choice_images=CHOICE_IMAGES, final_images=FINAL_IMAGES,
               ran_on=machines, **content,
               float={"nbytes": size_bytes(ptq.fold_batch_norm(whole)), **runs.outcome(accuracy(whole, data.load("test")))})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the runs' own files are")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("do", choices=["list", "run", "collect"])
    parser.add_argument("run", nargs="*", help="of run: arm, bits, seed")
    given = parser.parse_args(arguments)
    if given.do == "list":
        print("\n".join(f"{arm} {bits} {seed}" for arm, bits, seed in names()))
    elif given.do == "collect":
        collect(given.folder)
    else:
        chosen = (given.run[0], *map(int, given.run[1:])) if len(given.run) == 3 else None
        if chosen not in names():
            parser.error("run needs an arm, bits and a seed, one of those that list prints")
        run(*chosen, given.device, given.folder)


if __name__ == "__main__":
    main()
