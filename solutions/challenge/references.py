"""Makes the reference hand-ins beside this file, and references.json, what they score:

    python solutions/challenge/references.py                    all of it; some minutes
    python solutions/challenge/references.py both speed         these hand-ins, and the scores of all

    allocation     bits for each layer by the divergence of the outputs, every weight to nearest
    adaround       2 bits everywhere, rounding learned
    both           the bits of allocation, rounding learned
    speed          the residual network in 2 bits, 8 in its first and last layer, rounding learned

The scores are those of a seed that everybody knows, and not a teacher's: hidden images of another seed give others.
"""

import json
import sys
from pathlib import Path

import torch

from qlab import saving
from qlab.grading.challenge import board, bundle, measure
from qlab.lab import challenge, data, zoo
from qlab.nets.graph import trace
from qlab.nets.ptq import fold_batch_norm
from qlab.search import allocate, candidates, costs, rounding, sensitivity

HERE, SEED, CALIBRATION = Path(__file__).parent, "references", 512
NAMES = ("allocation", "adaround", "both", "speed")
HALF = {"scale_dtype": torch.float16}
PREDICT = '''import torch

from qlab.lab.challenge import normalised
from qlab.nets import ptq

model = ptq.load("model.bin").model


@torch.inference_mode()
def predict(pixels):
    found = [model(normalised(x).to(memory_format=torch.channels_last)) for x in pixels.split(100)]
    return torch.cat(found).argmax(1)
'''


def to_nearest(weight: torch.Tensor, bits: int):
    return rounding.round_to_nearest(weight, bits, ranges="mse", **HALF)


def allocated(images: torch.Tensor) -> tuple:
    """The float network, candidates of every layer, and the bits that lose least of the outputs within the budget."""
    model = trace(fold_batch_norm(zoo.load("depthwise")))
    made = candidates.make(model, (2, 3, 4, 5, 6, 8), to_nearest)
    content = {name: tensor.half() for name, tensor in model.state_dict().items()}
    content |= {f"{name}.weight": of_layer[2] for name, of_layer in made.items()}
    rest = len(challenge.encode(content)) - sum(of_layer[2].nbytes for of_layer in made.values())  # biases, and what says how to decode
    return model, made, allocate.exact(sensitivity.by_kl(model, made, images), costs.nbytes(made), challenge.BUDGET - rest)


def make(names: list[str]) -> None:
    """Write these hand-ins."""
    images = data.calibration(CALIBRATION).images
    model, made, bits = allocated(images) if {"allocation", "both"} & set(names) else (None, None, None)
    for name in names:
        (HERE / name).mkdir(exist_ok=True)
        saving.write({HERE / name / "alias.txt": f"reference: {name}\n".encode()})
        if name == "speed":
            net = zoo.load("resnet")
            layers = [layer for layer, module in fold_batch_norm(net).named_modules() if hasattr(module, "weight")]
            rounding.quantize(net, images, {layer: 8 if layer in ("conv", "fc") else 2 for layer in layers}, steps=150, **HALF).save(
                HERE / name / "model.bin")
            saving.write({HERE / name / "predict.py": PREDICT.encode()})
            continue
        quantized = candidates.apply(model, made, bits) if name == "allocation" else \
            rounding.quantize(zoo.load("depthwise"), images, 2 if name == "adaround" else bits, **HALF)
        print(name, challenge.save(HERE / name / "weights.safetensors", quantized), "bytes", bits if name != "adaround" else 2, flush=True)


def score() -> None:
    """Measure all hand-ins in the sandbox, and write references.json."""
    asked, found = bundle.make(SEED), []
    with measure.sandboxed(1) as mark:
        for name in NAMES:
            marks = mark([{"name": path.name, "data": path.read_bytes()} for path in sorted((HERE / name).iterdir())], asked)
            found.append(marks | {"alias": name, "status": "graded", "submission": {"student": name, "id": name, "duplicate_of": None}})
            print(name, *(question["reason"] for question in marks["questions"] if question["state"] != "missing"), flush=True)
    record = {"command": "python solutions/challenge/references.py", "seed": SEED, "images": int(sum(asked["from_test"])),
              "rows": [{column: row[column] for column in board.COLUMNS} for row in board.rows(found, asked)]}
    saving.write({HERE / "references.json": (json.dumps(record, indent=1) + "\n").encode()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    make([name for name in NAMES if name in sys.argv[1:] or not sys.argv[1:]])
    score()
