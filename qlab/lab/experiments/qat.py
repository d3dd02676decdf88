"""The runs behind notebook 07: the depthwise net with weights and activations of 4 bits, quantized after training and trained for it.

    python -m qlab.lab.experiments.qat              all arms; about 50 minutes of one core
    python -m qlab.lab.experiments.qat lsq-tensor   one arm again; the others' results stay in the record

Every arm starts from the zoo's network and is trained equally long on the same images in the same order: 3 epochs, then one at a small
learning rate with batch norm's statistics frozen. The control is trained in float32, so that what more training alone brings is not
mistaken for what quantization-aware training brings.
"""

import argparse
import copy
import time

from qlab.lab import data, runs, zoo
from qlab.lab.measure import accuracy
from qlab.nets import ptq, qat
from qlab.nets.training import fit
from qlab.quant import linear

NET, BITS, SEED = "depthwise", 4, 0
EPOCHS, MAX_LR = (3, 1), (0.02, 0.0005)                                                      # then with batch norm frozen
AXES = {"tensor": None, "channel": 0}
ARMS = {  # name: learned scales, axis; the names of the checkpoints in records/
    "lsq-channel": (True, 0), "ste-channel": (False, 0), "lsq-tensor": (True, None),
}


def prepared(arm: str):
    """The network of an arm before its training: fake quantizers in place, ranges from 512 calibration images."""
    learned, axis = ARMS[arm]
    return qat.prepare(zoo.load(NET), data.calibration(512).images, BITS, BITS, axis=axis, learned=learned)


def trained(arm: str):
    """The network of an arm after its training, from its checkpoint: the input of qat.convert; or "control", in float32."""
    model = copy.deepcopy(zoo.load(NET)) if arm == "control" else prepared(arm)
    return runs.load_model(f"qat_{arm}", model, runs.load("qat")["arms"][arm]["sha256"])


def after_training() -> dict:
    """Post-training quantization at 4 bits: per tensor and per channel, each with two kinds of range, equalized or not."""
    model, cal, test = zoo.load(NET), data.calibration(512).images, data.load("test")
    rows = {"float": {"nbytes": 4 * sum(p.numel() for p in ptq.fold_batch_norm(model).parameters()), **runs.outcome(accuracy(model, test))}}
    for per, axis in AXES.items():
        for ranges in ("minmax", "mse"):
            for equalize in (False, True):
                q = ptq.quantize(model, cal, lambda w, axis=axis: linear.quantize(w, BITS, "symmetric", axis=axis), BITS, ranges, equalize)
                name = f"{per}, {ranges}{', equalized' if equalize else ''}"
                rows[name] = {"nbytes": q.nbytes, **runs.outcome(accuracy(q.model, test))}
                print(name, accuracy(q.model, test), flush=True)
    return rows


def run(arm: str) -> dict:
    """Train one arm and look at the test images once."""
    train, test, started = data.load("train"), data.load("test"), time.time()
    model = zoo.load(NET).requires_grad_(True) if arm == "control" else prepared(arm)
    learn, losses = fit if arm == "control" else qat.train, []
    for phase, (epochs, max_lr) in enumerate(zip(EPOCHS, MAX_LR)):
        if phase == 1 and arm != "control":
            qat.freeze(model)
        losses += learn(model, *train, epochs, max_lr, seed=SEED + phase, augment=zoo.augment, name=arm)
    if arm == "control":
        nbytes, result = 4 * sum(p.numel() for p in ptq.fold_batch_norm(model).parameters()), accuracy(model, test)
    else:
        q = qat.convert(model)
        nbytes, result = q.nbytes, accuracy(q.model, test)
    minutes = round((time.time() - started) / 60, 1)
    return {"sha256": runs.save_model(f"qat_{arm}", model), "losses": losses, "minutes": minutes, "nbytes": nbytes,
            **runs.outcome(result)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", choices=["ptq", "control", *ARMS, []], help="only these, beside what the record holds")
    parts = parser.parse_args(arguments).part or ["ptq", "control", *ARMS]
    for part in parts:
        result = after_training() if part == "ptq" else run(part)
        try:
            old = runs.raw("qat")
        except FileNotFoundError:
            old = {}
        found = {"ptq": old.get("ptq", {}), "arms": old.get("arms", {})}
        (found if part == "ptq" else found["arms"])[part] = result
        runs.write("qat", "python -m qlab.lab.experiments.qat", net=NET, bits=BITS, epochs=EPOCHS, max_lr=MAX_LR, seed=SEED, **found)


if __name__ == "__main__":
    main()
